"""Namespaces for the benchmarks: peers' nodes and pods, all under one prefix, all removed in the end.

Nothing here touches the host's own network: links are made inside the namespaces.
"""
import json
import os
import subprocess

PREFIX = f"pwbench{os.getpid()}"
MADE = []


def run(*argv, **kw):
    """Runs a command; its words on failure are the exception's."""
    p = subprocess.run(argv, capture_output=True, text=True, **kw)
    if p.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {p.stderr.strip() or p.stdout.strip()}")
    return p.stdout


def add(name):
    name = f"{PREFIX}-{name}"
    run("ip", "netns", "add", name)
    MADE.append(name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return name


def remove_all():
    for name in reversed(MADE):
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    MADE.clear()


def path(ns):
    return f"/run/netns/{ns}"


def inside(ns_path, *argv):
    """The command line that runs argv with the network of ns_path."""
    return ["nsenter", f"--net={ns_path}", *argv]


def sysctl(ns, **kv):
    for k, v in kv.items():
        run(*inside(path(ns), "sysctl", "-qw", f"{k.replace('__', '.')}={v}"))


def switch(name):
    ns = add(name)
    run("ip", "-n", ns, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", ns, "link", "set", "br0", "up")
    return ns


def node(sw, name, address):
    """A node with eth1 on the switch's bridge."""
    ns = add(name)
    run("ip", "-n", sw, "link", "add", f"p{name}", "type", "veth", "peer", "name", "eth1", "netns", ns)
    run("ip", "-n", sw, "link", "set", f"p{name}", "master", "br0", "up")
    run("ip", "-n", ns, "addr", "add", f"{address}/24", "dev", "eth1")
    run("ip", "-n", ns, "link", "set", "eth1", "up")
    sysctl(ns, net__ipv4__ip_forward=1)
    return ns


def routed_pod(node_ns, name, address):
    """A pod by plain kernel routing: a veth, a /32 on the node, a link-local gateway."""
    ns = add(name)
    run("ip", "-n", node_ns, "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", ns)
    run("ip", "-n", node_ns, "addr", "add", "169.254.1.1/32", "dev", f"v{name}")
    run("ip", "-n", node_ns, "link", "set", f"v{name}", "up")
    run("ip", "-n", node_ns, "route", "add", f"{address}/32", "dev", f"v{name}", "scope", "link")
    run("ip", "-n", ns, "addr", "add", f"{address}/32", "dev", "eth0")
    run("ip", "-n", ns, "link", "set", "eth0", "up")
    run("ip", "-n", ns, "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
    run("ip", "-n", ns, "route", "add", "default", "via", "169.254.1.1")
    return ns


def address_of(ns_path, device="eth0"):
    out = json.loads(run(*inside(ns_path, "ip", "-j", "-4", "addr", "show", "dev", device)) or "[]")
    for link in out:
        for a in link.get("addr_info", []):
            return a["local"]
    return None


def kube_proxy_rules(services):
    """iptables-restore input of the shape that kube-proxy writes: ClusterIP services of two endpoints each."""
    lines = ["*filter", ":KUBE-FORWARD - [0:0]", ":KUBE-SERVICES - [0:0]",
             "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD",
             "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
             "-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
             "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
             "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
             "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "COMMIT",
             "*nat", ":KUBE-SERVICES - [0:0]", ":KUBE-POSTROUTING - [0:0]", ":KUBE-MARK-MASQ - [0:0]"]
    for i in range(services):
        lines += [f":KUBE-SVC-{i:08d} - [0:0]", f":KUBE-SEP-{i:08d}A - [0:0]", f":KUBE-SEP-{i:08d}B - [0:0]"]
    lines += ["-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
              "-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
              "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
              "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
              "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
              "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000", "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"]
    for i in range(services):
        vip = f"10.96.{i // 250 + 1}.{i % 250 + 1}"
        lines.append(f"-A KUBE-SERVICES -d {vip}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{i:08d}")
        lines.append(f"-A KUBE-SVC-{i:08d} -m statistic --mode random --probability 0.5 -j KUBE-SEP-{i:08d}A")
        lines.append(f"-A KUBE-SVC-{i:08d} -j KUBE-SEP-{i:08d}B")
        for end, net in (("A", 0), ("B", 1)):
            to = f"10.244.{net}.{i % 240 + 10}"
            lines.append(f"-A KUBE-SEP-{i:08d}{end} -s {to}/32 -j KUBE-MARK-MASQ")
            lines.append(f"-A KUBE-SEP-{i:08d}{end} -p tcp -m tcp -j DNAT --to-destination {to}:8080")
    lines += ["COMMIT", ""]
    return "\n".join(lines)
