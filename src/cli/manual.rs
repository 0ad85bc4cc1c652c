//! `meshkv man` and `meshkv completions`: both written from the command line's own description.

use super::settings::{self, SETTINGS};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// The completion script of a shell.
pub(super) fn completions(shell: clap_complete::Shell, command: &Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(command), "meshkv", &mut script);
    script
}

/// The command without the subcommands that are hidden: the generator would offer them. `command` has not been built.
fn shown(command: &Command) -> Command {
    let version = command.get_version().unwrap_or_default().to_owned();
    Command::new("meshkv")
        .version(version)
        .args(command.get_arguments())
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()))
}

/// The manual page, in roff. One page for all commands: they are few, and `meshkv man` prints one.
pub(super) fn page(mut command: Command) -> Vec<u8> {
    command.build();
    match write_page(&command) {
        Ok(page) => page,
        // A vector takes every write.
        Err(error) => unreachable!("writing to memory failed: {error}"),
    }
}

fn write_page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let manual = Man::new(command.clone()).manual("meshkv manual");
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_description_section(&mut page)?;
    commands(command).to_writer(&mut page)?;
    manual.render_options_section(&mut page)?;
    for name in ["balance", "up", "healthcheck"] {
        options_of(command, name).to_writer(&mut page)?;
    }
    environment(command).to_writer(&mut page)?;
    fixed_sections().to_writer(&mut page)?;
    Ok(page)
}

fn commands(command: &Command) -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["COMMANDS"]);
    section.text([roman(
        "Without a command, a node runs as with serve. serve and check take the OPTIONS below.",
    )]);
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        section.control("TP", []);
        section.text([bold(format!("meshkv {}", sub.get_name()))]);
        let text = sub.get_long_about().or(sub.get_about()).map(ToString::to_string).unwrap_or_default();
        section.text([roman(text.replace("\n\n", ". "))]);
    }
    section
}

fn options_of(command: &Command, name: &str) -> Roff {
    let mut section = Roff::new();
    section.control("SH", [format!("{} OPTIONS", name.to_uppercase()).as_str()]);
    let arguments = command.find_subcommand(name).into_iter().flat_map(Command::get_arguments);
    for argument in arguments.filter(|argument| argument.get_id() != "help") {
        section.control("TP", []);
        section.text([bold(argument.to_string())]);
        let text =
            argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        section.text([roman(text.replace("\n\n", ". "))]);
    }
    section
}

/// The flag as it is written, which is not always its id.
fn flag_in(command: &Command, id: &str) -> String {
    let mut everywhere = std::iter::once(command).chain(command.get_subcommands());
    let argument = everywhere.find_map(|one| one.get_arguments().find(|argument| argument.get_id() == id));
    let long = argument.and_then(clap::Arg::get_long);
    long.map_or_else(|| settings::flag_of(id), |long| format!("--{long}"))
}

fn environment(command: &Command) -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["ENVIRONMENT"]);
    section.text([roman(
        "A flag goes before its variable, a variable before the default. Where a flag has two, the first that \
         is set wins. An empty variable counts as not set.",
    )]);
    for setting in SETTINGS {
        for name in setting.variables {
            section.control("TP", []);
            section.text([bold(*name)]);
            section.text([roman(match *name {
                "MESHKV_SECRET" => "The secret itself.".to_owned(),
                _ => format!("See {}.", flag_in(command, setting.id)),
            })]);
        }
    }
    section.control("TP", []);
    section.text([bold("NO_COLOR")]);
    section.text([roman("If it is set and not empty, nothing is coloured.")]);
    section
}

fn fixed_sections() -> Roff {
    let mut sections = Roff::new();
    sections.control("SH", ["SIGNALS"]);
    sections.text([roman(
        "SIGTERM and SIGINT drain the node: health turns 503, listeners close, answers in flight finish, at \
         most 5 seconds. A second one ends it at once.",
    )]);
    sections.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [
        ("0", "Stopped cleanly, or done."),
        ("1", "Failed while starting or running; for healthcheck: not healthy."),
        ("2", "Wrong usage or configuration; nothing was started."),
        ("130, 143", "A second SIGINT or SIGTERM cut the drain short."),
    ] {
        sections.control("TP", []);
        sections.text([bold(code)]);
        sections.text([roman(meaning)]);
    }
    sections.control("SH", ["EXAMPLES"]);
    for line in super::EXAMPLES.lines().skip(1).take_while(|line| !line.starts_with("Precedence")) {
        let line = line.trim();
        if !line.is_empty() {
            sections.control("PP", []);
            sections.control("nf", []);
            sections.text([roman(line)]);
            sections.control("fi", []);
        }
    }
    sections
}
