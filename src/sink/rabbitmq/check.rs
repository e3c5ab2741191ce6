//! Questions to a broker for the `check` command. Everything returned is plain data.
