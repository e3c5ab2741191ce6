"""Orders whose changes are events. Each change and its event are one transaction."""

import os

import psycopg
from psycopg.types.json import Jsonb


def add_event(connection, type, order, data):
    # A column list and nothing clever: the rest of the columns have defaults.
    connection.execute(
        "insert into outbox (type, subject, key, data) values (%s, %s, %s, %s)",
        (type, str(order), f"order-{order}", Jsonb(data)),
    )


def place(connection, order, customer, total):
    with connection.transaction():
        connection.execute(
            "insert into orders (id, customer, total) values (%s, %s, %s)", (order, customer, total)
        )
        add_event(connection, "order.placed", order, {"id": order, "customer": customer, "total": total})


def pay(connection, order):
    with connection.transaction():
        # The update locks the order until the commit, and comes before the event: so events of one order
        # are in the order of the commits.
        connection.execute("update orders set status = 'paid' where id = %s", (order,))
        add_event(connection, "order.paid", order, {"id": order})


def cancel(connection, order):
    with connection.transaction():
        row = connection.execute(
            "update orders o set status = 'cancelled' from orders before"
            " where o.id = %s and before.id = o.id returning before.status",
            (order,),
        ).fetchone()
        add_event(connection, "order.cancelled", order, {"id": order})
        if row[0] == "paid":
            raise ValueError(f"order {order} is paid")


def main():
    # With autocommit only what is inside `transaction()` is one.
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        place(connection, 42, "Zoë 🐇", "99.90")
        pay(connection, 42)
        try:
            cancel(connection, 42)
        except ValueError as refusal:
            # The event went with the change.
            print(refusal)


main()
