//! `lab`: see `lab --help`.

fn main() -> std::process::ExitCode {
    podwire_provisioner::cli::run()
}
