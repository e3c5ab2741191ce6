//! The orders in Rust: `DATABASE_URL=… cargo run --example writer`.

mod orders;

use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is not set")?;
    let (mut client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    let said = orders::run(&mut client).await;
    // Without its client the connection ends by itself.
    drop(client);
    driver.await??;
    println!("{}", said?);
    Ok(())
}
