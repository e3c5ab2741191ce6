//! `outrigger man`: manual pages, made from what `--help` shows.

use std::fs;
use std::io::{self, Write};

use clap::CommandFactory;
use clap_mangen::Man;

use super::Failure;
use super::args::{self, Cli};

/// Prints the page of `outrigger`, or writes the pages of all commands into a folder, as `outrigger-status.1`.
pub fn run(args: &args::Man) -> Result<(), Failure> {
    let mut root = Cli::command();
    // Global options reach the subcommands only now, and `help` needs no page.
    root = root.disable_help_subcommand(true);
    root.build();
    let Some(folder) = &args.folder else {
        return Ok(io::stdout().write_all(&page(&root)?)?);
    };
    let unwritable = |error: io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(unwritable)?;
    let mut waiting = vec![(root, "outrigger".to_owned())];
    while let Some((command, name)) = waiting.pop() {
        for inner in command.get_subcommands() {
            waiting.push((inner.clone(), format!("{name}-{}", inner.get_name())));
        }
        let file = folder.join(format!("{name}.1"));
        let command = command.display_name(name);
        fs::write(file, page(&command)?).map_err(unwritable)?;
    }
    Ok(())
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone())
        .manual("Outrigger")
        .render(&mut page)?;
    Ok(page)
}
