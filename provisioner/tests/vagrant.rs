//! Vagrantfiles, as Ruby reads them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::process::{Command, Stdio};

/// What the file says is collected by stand-ins for Vagrant's own objects, so that Ruby evaluates every line.
const STAND_INS: &str = r##"
class Anything
  def initialize(path) = @path = path
  def method_missing(name, *args, **named)
    $said << "#{@path}#{name} #{args.map(&:inspect).join(' ')}#{named.empty? ? '' : ' ' + named.inspect}"
    inner = Anything.new("#{@path}#{name}.")
    yield inner if block_given?
    inner
  end
  def respond_to_missing?(*) = true
end
$said = []
module Vagrant
  def self.configure(version) = yield(Anything.new(''))
end
eval(STDIN.read, binding, 'Vagrantfile')
puts $said
"##;

#[test]
fn ruby_reads_the_file_of_every_lab() {
    for name in podwire_provisioner::lab::embedded_names() {
        let rendered = Command::new(env!("CARGO_BIN_EXE_lab")).args(["render", &name]).output().unwrap();
        assert!(rendered.status.success());
        let mut ruby = Command::new("ruby")
            .args(["-W", "-e", STAND_INS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        ruby.stdin.take().unwrap().write_all(&rendered.stdout).unwrap();
        let read = ruby.wait_with_output().unwrap();
        let (said, errors) =
            (String::from_utf8(read.stdout).unwrap(), String::from_utf8_lossy(&read.stderr).into_owned());
        assert!(read.status.success() && errors.is_empty(), "{errors}");
        let lab = podwire_provisioner::lab::Lab::load(&name).unwrap();
        for node in &lab.nodes {
            assert!(said.contains(&format!("vm.define \"{}\"", node.name)), "{said}");
            for interface in &node.interfaces {
                assert!(said.contains(&format!("\"{}\"", interface.address.addr())), "{said}");
            }
        }
        assert!(said.contains("vm.synced_folder \".\" \"/vagrant\"") && said.contains("true"), "{said}");
    }
}

#[test]
fn a_box_that_could_be_code_is_refused() {
    let refused = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["render", "--box", "x'; system('id'); '"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stdout.is_empty());
}
