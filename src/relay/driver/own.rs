//! The steps of ownership, carried out.

use super::{Driver, report};
use crate::relay::core::Input;
use crate::relay::core::ownership::{STORED, Step};
use crate::store::Partitions;
use crate::telemetry::metrics::Operation;
use tokio::time::Instant;

impl Driver {
    pub(super) fn own(&mut self, step: Step) {
        let store = self.store.clone();
        let replica = self.core.replica().unwrap_or_default();
        match step {
            Step::Register => {
                let (name, partitions) = (self.name.clone(), self.partitions);
                let ttl = self.lease_ttl.mul_f64(STORED);
                let configuration = self.peers.configuration().clone();
                self.ask(
                    Operation::Lease,
                    "register",
                    async move {
                        let registered = store
                            .register_as(&name, ttl, partitions, &configuration)
                            .await?;
                        report::registered(&registered, partitions);
                        Ok((registered.replica, registered.partitions))
                    },
                    Input::Registered,
                );
            }
            Step::Tick { beat } => {
                let told = beat.then(|| self.tell.now(&self.core.totals(), Instant::now()));
                self.ask(
                    Operation::Lease,
                    "renew the lease",
                    async move { store.tick_telling(replica, told.as_ref()).await },
                    Input::Ticked,
                );
            }
            Step::Claim(partitions) => self.ask(
                Operation::Lease,
                "claim",
                async move {
                    let claimed = store.claim(replica, &partitions).await?;
                    report::claimed(&claimed);
                    Ok(claimed)
                },
                Input::Claimed,
            ),
            Step::Load(partitions) => {
                let (partitions, limits) = (self.only(partitions), self.core.load_limits());
                self.ask(
                    Operation::Failures,
                    "load failures",
                    async move { store.load_failing(&partitions, limits).await },
                    Input::Loaded,
                );
            }
            Step::Release(partitions) => self.ask(
                Operation::Lease,
                "release",
                async move {
                    store.release(replica, &partitions).await?;
                    report::released(&partitions);
                    Ok(())
                },
                Input::Released,
            ),
            Step::Unregister => {
                self.ask(
                    Operation::Lease,
                    "unregister",
                    async move { store.unregister(replica).await },
                    Input::Unregistered,
                );
            }
        }
    }

    pub(super) fn only(&self, mut owned: Vec<i32>) -> Partitions {
        owned.sort_unstable();
        Partitions::Some {
            owned,
            count: self.core.partitions(),
        }
    }
}
