//! Orders whose changes are events. Each change and its event are one transaction.

use std::fmt;

use serde_json::{Value, json};
use tokio_postgres::{Client, Error, Transaction};

/// Why an order was not cancelled.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is paid.
    Paid(i64),
    /// The database failed.
    Database(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paid(order) => write!(f, "order {order} is paid"),
            Self::Database(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

async fn add_event(
    transaction: &Transaction<'_>,
    kind: &str,
    order: i64,
    data: Value,
) -> Result<(), Error> {
    // A column list and nothing clever: the rest of the columns have defaults.
    let insert = "insert into outbox (type, subject, key, data) values ($1, $2, $3, $4)";
    let key = format!("order-{order}");
    transaction
        .execute(insert, &[&kind, &order.to_string(), &key, &data])
        .await?;
    Ok(())
}

/// Places an order.
pub(crate) async fn place(
    client: &mut Client,
    order: i64,
    customer: &str,
    total: &str,
) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    let insert = "insert into orders (id, customer, total) values ($1, $2, $3::text::numeric)";
    transaction
        .execute(insert, &[&order, &customer, &total])
        .await?;
    let data = json!({"id": order, "customer": customer, "total": total});
    add_event(&transaction, "order.placed", order, data).await?;
    transaction.commit().await
}

/// Marks an order as paid.
pub(crate) async fn pay(client: &mut Client, order: i64) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    // The update locks the order until the commit, and comes before the event: so events of one order are
    // in the order of the commits.
    let update = "update orders set status = 'paid' where id = $1";
    transaction.execute(update, &[&order]).await?;
    add_event(&transaction, "order.paid", order, json!({"id": order})).await?;
    transaction.commit().await
}

/// Cancels an order unless it is paid.
pub(crate) async fn cancel(client: &mut Client, order: i64) -> Result<(), Refused> {
    let transaction = client.transaction().await?;
    let update = "update orders o set status = 'cancelled' from orders before \
                  where o.id = $1 and before.id = o.id returning before.status";
    let before: String = transaction.query_one(update, &[&order]).await?.get(0);
    add_event(&transaction, "order.cancelled", order, json!({"id": order})).await?;
    if before == "paid" {
        // A transaction that is dropped rolls back.
        return Err(Refused::Paid(order));
    }
    Ok(transaction.commit().await?)
}

/// All three.
pub(crate) async fn run(client: &mut Client) -> Result<String, Refused> {
    place(client, 42, "Zoë 🐇", "99.90").await?;
    pay(client, 42).await?;
    match cancel(client, 42).await {
        // The event went with the change.
        Err(refusal @ Refused::Paid(_)) => Ok(refusal.to_string()),
        Err(error) => Err(error),
        Ok(()) => Ok("a paid order was cancelled".to_owned()),
    }
}
