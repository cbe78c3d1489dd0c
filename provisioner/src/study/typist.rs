//! Types commands, for a learner or in a learner's place.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use crate::error::{Failure, OrFailure};

/// What came of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// Exit code, or 128 and the signal's number.
    pub code: i32,
    /// What it printed, if that was collected.
    pub output: String,
}

/// A shell command in the study's directory and environment.
fn shell(line: &str, directory: &std::path::Path, env: &[(String, String)]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(directory).envs(env.iter().map(|(k, v)| (k, v)));
    command
}

/// Runs a command that has the terminal to itself.
pub fn hand_over(
    line: &str,
    directory: &std::path::Path,
    env: &[(String, String)],
) -> Result<Typed, Failure> {
    let status = shell(line, directory, env).status().or_failure("bash", "install bash")?;
    Ok(Typed { code: code(status), output: String::new() })
}

/// Runs a command, showing with `show` what it prints as it prints it.
pub fn run(
    line: &str,
    directory: &std::path::Path,
    env: &[(String, String)],
    mut show: impl FnMut(&str),
) -> Result<Typed, Failure> {
    let thing = "bash";
    let mend = "install bash";
    let (mut reader, writer) = std::io::pipe().or_failure(thing, "raise the limit of open files")?;
    let mut command = shell(line, directory, env);
    let errors = writer.try_clone().or_failure(thing, "raise the limit of open files")?;
    let mut child =
        command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn().or_failure(thing, mend)?;
    // The command holds the writing ends: they must end with the child.
    drop(command);
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = reader.read(&mut buffer)
        && length > 0
    {
        output.extend_from_slice(&buffer[..length]);
        show(&String::from_utf8_lossy(&buffer[..length]));
    }
    let status = child.wait().or_failure(thing, mend)?;
    let _ = std::io::stdout().flush();
    Ok(Typed { code: code(status), output: String::from_utf8_lossy(&output).into_owned() })
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_exit_code_are_the_commands_own() {
        let mut shown = String::new();
        let env = [("WORD".to_owned(), "two".to_owned())];
        let typed =
            run("echo one; echo $WORD >&2; exit 3", "/".as_ref(), &env, |text| shown += text).unwrap();
        assert_eq!(typed, Typed { code: 3, output: "one\ntwo\n".into() });
        assert_eq!(shown, typed.output);
        assert_eq!(run("kill -9 $$", "/".as_ref(), &[], |_| ()).unwrap().code, 137);
    }
}
