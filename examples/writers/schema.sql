create table orders (
    id        bigint primary key,
    customer  text not null,
    total     numeric not null,
    status    text not null default 'placed'
);
