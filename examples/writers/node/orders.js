// Orders whose changes are events. Each change and its event are one transaction.
import pg from "pg";

// A transaction belongs to one client: with a pool, take one for the whole of it.
async function inTransaction(client, work) {
  await client.query("begin");
  try {
    const result = await work();
    await client.query("commit");
    return result;
  } catch (error) {
    await client.query("rollback");
    throw error;
  }
}

// A column list and nothing clever: the rest of the columns have defaults.
async function addEvent(client, type, order, data) {
  await client.query("insert into outbox (type, subject, key, data) values ($1, $2, $3, $4)", [
    type,
    String(order),
    `order-${order}`,
    JSON.stringify(data),
  ]);
}

async function place(client, order, customer, total) {
  await inTransaction(client, async () => {
    await client.query("insert into orders (id, customer, total) values ($1, $2, $3)", [order, customer, total]);
    await addEvent(client, "order.placed", order, { id: order, customer, total });
  });
}

async function pay(client, order) {
  await inTransaction(client, async () => {
    // The update locks the order until the commit, and comes before the event: so events of one order
    // are in the order of the commits.
    await client.query("update orders set status = 'paid' where id = $1", [order]);
    await addEvent(client, "order.paid", order, { id: order });
  });
}

async function cancel(client, order) {
  await inTransaction(client, async () => {
    const { rows } = await client.query(
      `update orders o set status = 'cancelled' from orders before
       where o.id = $1 and before.id = o.id returning before.status`,
      [order],
    );
    await addEvent(client, "order.cancelled", order, { id: order });
    if (rows[0].status === "paid") throw new RangeError(`order ${order} is paid`);
  });
}

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
try {
  await place(client, 42, "Zoë 🐇", "99.90");
  await pay(client, 42);
  await cancel(client, 42).catch((error) => {
    if (!(error instanceof RangeError)) throw error;
    // The event went with the change.
    console.log(error.message);
  });
} finally {
  await client.end();
}
