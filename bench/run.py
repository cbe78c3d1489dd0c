#!/usr/bin/env python3
"""Podwire beside its peers, in one run: ratios, never bare times.

  run.py --bin target/release --out report [--only up,cni,path,services,check,ipam,operator,memory] [--quick]

Writes bench.json (every sample) and bench.md (the table that the README quotes).
  up     `lab up` to all pods Ready, warm, with its parts
  cni    CNI ADD and DEL beside Debian's ptp + host-local, on the same node
  path   pod to pod across nodes beside node to node, plain kernel routing, and ptp with 200 services
  services  connections a second by ClusterIP and by NodePort beside direct ones, and beside kube-proxy's rules, at 1 and 10,000 Services; only if asked for
  check  `lab check` beside tcpdump --count and tshark on the same file
  ipam   addresses given and taken back beside an ordered set, and beside host-local
  operator  pod CIDRs for 1,000 nodes beside as many writes to the same API server
  memory what agent and operator hold in a lab beside the embedded control plane
Rounds are interleaved (every peer once a round, the order turning), so that the machine's noise falls on all alike.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import control
import netns
import services
from netns import inside, path, run

HERE = os.path.dirname(os.path.abspath(__file__))
CNI_BIN = "/usr/lib/cni"
LAB = "native-routing"

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--bin", required=True)
ap.add_argument("--out", required=True)
ap.add_argument("--only", default="up,cni,path,check,ipam,operator,memory")
ap.add_argument("--quick", action="store_true", help="one short round: shows that everything runs; no figures to quote")
args = ap.parse_args()
lab = os.path.join(args.bin, "lab")
rounds = 1 if args.quick else 3
seconds = 1 if args.quick else 5
samples = []
table = []
processes = []


def sample(section, peer, test, **figures):
    samples.append({"section": section, "peer": peer, "test": test, **figures})
    print(json.dumps(samples[-1]), file=sys.stderr, flush=True)


def values(peer, test, figure):
    return [s[figure] for s in samples if s["peer"] == peer and s["test"] == test and figure in s]


def median(peer, test, figure):
    got = values(peer, test, figure)
    return statistics.median(got) if got else None


def row(what, ours, peer, ratio, aim):
    table.append([what, ours, peer, ratio, aim])


def ratio(a, b):
    return f"{a / b:.2f}x" if a and b else "failed"


def rough(n):
    """Three figures are all that a measurement is worth."""
    return f"{float(f'{n:.3g}'):,.0f}"


def lab_up():
    return json.loads(run(lab, "up", LAB, "-o", "json"))


def lab_down():
    run(lab, "down", LAB)


def bench_up():
    lab_up()
    lab_down()  # the first is cold: not counted
    for _ in range(1 if args.quick else 5):
        start = time.perf_counter()
        parts = lab_up()
        sample("up", "podwire", "up", seconds=round(time.perf_counter() - start, 3), parts=parts.get("parts", parts))
        start = time.perf_counter()
        lab_down()
        sample("up", "podwire", "down", seconds=round(time.perf_counter() - start, 3))
    got = values("podwire", "up", "seconds")
    last = [s for s in samples if s["test"] == "up"][-1]["parts"]
    row("`lab up` to all pods Ready", f"{statistics.median(got):.2f} s ({min(got):.2f} to {max(got):.2f})", "", "", "2 s or less")
    row("its parts", json.dumps(last), "", "", "")
    row("`lab down`", f"{median('podwire', 'down', 'seconds'):.2f} s", "", "", "")


def bench_cni():
    peers = {
        "ptp": {"type": "ptp", "ipMasq": False},
        "ptp with masquerade": {"type": "ptp", "ipMasq": True},
    }
    each = ["--sequential", "10", "--each", "3"] if args.quick else []
    script = os.path.join(HERE, "cni.py")
    lab_up()
    try:
        for n in range(rounds):
            order = ["podwire", *peers]
            for peer in order if n % 2 == 0 else reversed(order):
                if peer == "podwire":
                    conflist = json.loads(run(lab, "exec", "--lab", LAB, "k8s-ctr", "--", "cat", "/etc/cni/net.d/05-podwire.conflist"))
                    conf = dict(conflist["plugins"][0], cniVersion=conflist["cniVersion"], name=conflist["name"])
                    plugin = "/opt/cni/bin/podwire-cni"
                else:
                    conf = dict(peers[peer], cniVersion="1.0.0", name=f"bench{n}", mtu=1500, ipam={
                        "type": "host-local", "dataDir": f"/tmp/bench-{n}-{len(peer)}",
                        "ranges": [[{"subnet": "10.99.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]})
                    plugin = f"{CNI_BIN}/ptp"
                out = run(lab, "exec", "--lab", LAB, "k8s-ctr", "--", "python3", script, "--plugin", plugin, "--conf", "-", *each,
                          input=json.dumps(conf))
                for test, figures in json.loads(out).items():
                    sample("cni", peer, test, **figures)
    finally:
        lab_down()
    for test in ("ADD sequential", "DEL sequential", "ADD x8", "DEL x8"):
        for peer in peers:
            ours, theirs = median("podwire", test, "p50_ms"), median(peer, test, "p50_ms")
            aim = "0.5x or less" if peer == "ptp" and test.startswith("ADD") else ""
            row(f"CNI {test}, p50", f"{ours:.2f} ms", f"{peer} + host-local {theirs:.2f} ms", ratio(ours, theirs), aim)


def node_pid(name):
    """PID 1 of a lab node as the host sees it: the oldest process in the node's network namespace."""
    want = os.stat(path(name)).st_ino
    found = []
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{p}/ns/net").st_ino == want:
                found.append(int(p))
        except OSError:
            pass
    return min(found)


def podwire_pods():
    """(client, server, server's address): two pods of the lab on different nodes, by their namespaces."""
    pods = {}
    for node in ("k8s-ctr", "k8s-w1"):
        base = f"/proc/{node_pid(f'{LAB}-{node}')}/root/run/netns"
        for name in sorted(os.listdir(base)):
            address = netns.address_of(f"{base}/{name}")
            if address and address.startswith("10.244."):
                pods.setdefault(node, (f"{base}/{name}", address))
    return pods["k8s-ctr"][0], pods["k8s-w1"][0], pods["k8s-w1"][1]


def peers_up():
    """name -> (client ns path, server ns path, server address), each peer with its own pair of nodes."""
    sw = netns.switch("sw")
    a1, b1 = netns.node(sw, "a1", "192.168.77.11"), netns.node(sw, "b1", "192.168.77.12")
    peers = {"node to node": (path(a1), path(b1), "192.168.77.12")}
    a2, b2 = netns.node(sw, "a2", "192.168.77.21"), netns.node(sw, "b2", "192.168.77.22")
    pa, pb = netns.routed_pod(a2, "a2p", "10.244.0.11"), netns.routed_pod(b2, "b2p", "10.244.1.11")
    run("ip", "-n", a2, "route", "add", "10.244.1.0/24", "via", "192.168.77.22")
    run("ip", "-n", b2, "route", "add", "10.244.0.0/24", "via", "192.168.77.21")
    peers["plain routing"] = (path(pa), path(pb), "10.244.1.11")
    a3, b3 = netns.node(sw, "a3", "192.168.77.31"), netns.node(sw, "b3", "192.168.77.32")
    pods = []
    for n, ns in enumerate((a3, b3)):
        run(*inside(path(ns), "iptables-restore", "-n"), input=netns.kube_proxy_rules(200))
        pod = netns.add(f"ptp{n}")
        conf = {"cniVersion": "1.0.0", "name": f"n{n}", "type": "ptp", "ipMasq": True, "mtu": 1500, "ipam": {
            "type": "host-local", "dataDir": tempfile.mkdtemp(prefix="pwbench-ipam-"),
            "ranges": [[{"subnet": "10.244.0.0/16", "rangeStart": f"10.244.{n}.10", "rangeEnd": f"10.244.{n}.250",
                         "gateway": f"10.244.{n}.1"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
        env = dict(os.environ, CNI_COMMAND="ADD", CNI_CONTAINERID=pod, CNI_NETNS=path(pod), CNI_IFNAME="eth0", CNI_PATH=CNI_BIN)
        run(*inside(path(ns), f"{CNI_BIN}/ptp"), input=json.dumps(conf), env=env)
        pods.append(pod)
    run("ip", "-n", a3, "route", "add", "10.244.1.0/24", "via", "192.168.77.32")
    run("ip", "-n", b3, "route", "add", "10.244.0.0/24", "via", "192.168.77.31")
    peers["ptp, 200 services"] = (path(pods[0]), path(pods[1]), netns.address_of(path(pods[1])))
    return peers


def serve(ns, port, cpu, *argv):
    """Starts a server and returns when its port listens."""
    p = subprocess.Popen(inside(ns, "taskset", "-c", str(cpu), *argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    processes.append(p)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if f":{port} " in run(*inside(ns, "ss", "-Hlnt")):
            return p
        if p.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"{argv[0]} does not listen on port {port}")


def stop(p):
    p.terminate()
    try:
        p.wait(3)
    except subprocess.TimeoutExpired:
        p.kill()
        p.wait()


def measure(test, peer, client, server, address):
    cli = lambda cpu, *argv: run(*inside(client, "taskset", "-c", str(cpu), *argv), timeout=seconds + 30)
    if test == "tcp stream":
        p = serve(server, 5201, 1, "iperf3", "-s", "-1", "-p", "5201")
        out = json.loads(cli(0, "iperf3", "-J", "-c", address, "-p", "5201", "-t", str(seconds), "-O", "1"))
        figures = {"gbps": round(out["end"]["sum_received"]["bits_per_second"] / 1e9, 3)}
    elif test == "tcp rr":  # both ends on one CPU: the cost of the path without that of waking another CPU
        p = serve(server, 5202, 0, "sockperf", "sr", "--tcp", "-p", "5202")
        out = cli(0, "sockperf", "pp", "--tcp", "-i", address, "-p", "5202", "-t", str(seconds), "-m", "64", "--full-rtt")
        figures = {f"p{q}_us": float(re.search(rf"percentile {q}\.000\s*=\s*([\d.]+)", out).group(1)) for q in (50, 99)}
    else:
        rate = os.path.join(args.bin, "examples", "connect_rate")
        p = serve(server, 5203, 1, rate, "serve", "5203")
        figures = json.loads(cli(0, rate, "load", f"{address}:5203", "8", str(seconds)))
    stop(p)
    sample("path", peer, test, **figures)


def bench_path():
    lab_up()
    try:
        peers = {**peers_up(), "podwire": podwire_pods()}
        for n in range(rounds):
            for test in ("tcp stream", "tcp rr", "connections"):
                names = list(peers) if n % 2 == 0 else list(reversed(peers))
                for peer in names:
                    try:
                        measure(test, peer, *peers[peer])
                    except (RuntimeError, subprocess.TimeoutExpired, AttributeError, KeyError) as e:
                        sample("path", peer, test, failed=str(e)[:300])
                        for p in processes:
                            stop(p)
                    processes.clear()
    finally:
        netns.remove_all()
        lab_down()
    aims = {"tcp stream": ("gbps", "Gbit/s", "0.95x or more"), "tcp rr": ("p50_us", "us p50", "1.2x or less"),
            "connections": ("per_second", "a second", "0.8x or more")}
    for test, (figure, unit, aim) in aims.items():
        base = median("node to node", test, figure)
        for peer in ("podwire", "plain routing", "ptp, 200 services"):
            ours = median(peer, test, figure)
            row(f"{test}: {peer}", f"{ours:.1f} {unit}" if ours else "failed", f"node to node {base:.1f}" if base else "node to node failed", ratio(ours, base),
                aim if peer == "podwire" else "")


def connect_rate(client, address):
    """Connections a second; `client` is what goes before the command."""
    rate = os.path.abspath(os.path.join(args.bin, "examples", "connect_rate"))
    return json.loads(run(*client, "taskset", "-c", "0", rate, "load", address, "8", str(seconds), timeout=seconds + 60))


def bench_services():
    counts = (1, 100) if args.quick else (1, 10_000)
    rate = os.path.join(args.bin, "examples", "connect_rate")
    on = lambda machine: [lab, "exec", "--lab", LAB, machine, "--"]
    kubectl = [*on("k8s-ctr"), "kubectl"]
    lab_up()
    try:
        client, server, address = podwire_pods()
        services.one(kubectl, address)
        by_hand = services.peers(counts)
        in_pod = [*kubectl, "exec", "curl-pod", "--"]
        ours = {("direct", "podwire"): (in_pod, server, f"{address}:{services.PORT}")}
        ours_at = lambda count: {
            ("ClusterIP", f"podwire, {count:,} Services"): (in_pod, server, f"{services.VIP}:{services.PORT}"),
            ("NodePort", f"podwire, {count:,} Services"): (on("router"), server, f"192.168.10.100:{services.NODE_PORT}"),
        }
        theirs = {key: (inside(c), s, a) for key, (c, s, a) in by_hand.items()}
        for count in counts:
            if count > 1:
                services.many(kubectl, count - 1)
            deadline = time.monotonic() + 120
            listed = lambda: len(json.loads(run(*on("k8s-ctr"), "podwire", "service", "list", "-o", "json")))
            while listed() < count and time.monotonic() < deadline:
                time.sleep(0.2)
            share = lambda key: key[1].endswith(f" {count:,} Services") or "Services" not in key[1]
            peers = {key: peer for key, peer in {**theirs, **ours, **ours_at(count)}.items() if share(key)}
            for n in range(rounds):
                names = list(peers) if n % 2 == 0 else list(reversed(peers))
                for what, peer in names:
                    start, at, target = peers[what, peer]
                    p = serve(at, services.PORT, 1, rate, "serve", str(services.PORT))
                    try:
                        sample("services", peer, what, **connect_rate(start, target))
                    except (RuntimeError, subprocess.TimeoutExpired, ValueError) as e:
                        sample("services", peer, what, failed=str(e)[:300])
                    stop(p)
                    processes.clear()
    finally:
        netns.remove_all()
        lab_down()
    base, plain = (median(peer, "direct", "per_second") for peer in ("podwire", "plain routing"))
    if not base or not plain:
        raise RuntimeError(f"no connection from pod to pod: is {os.path.abspath(rate)} where pods see it (their /tmp is their own)?")
    row("connections, pod to pod", f"{rough(base)} a second", f"plain routing {rough(plain)}", ratio(base, plain), "")
    for what in ("ClusterIP", "NodePort"):
        for count in counts:
            ours = median(f"podwire, {count:,} Services", what, "per_second")
            for kind in ("iptables", "nftables"):
                peer = median(f"{kind}, {count:,} Services", what, "per_second")
                row(f"connections by {what}, {count:,} Services", f"{rough(ours)} a second" if ours else "failed",
                    f"kube-proxy's {kind} {rough(peer)}" if peer else f"{kind} failed", ratio(ours, peer), "")
            row(f"connections by {what}, {count:,} Services", f"{rough(ours)} a second" if ours else "failed", f"pod to pod {rough(base)}",
                ratio(ours, base), "")


def repeat_capture(base, out, size):
    """Repeats the packets of a classic pcap until the file has `size` bytes; returns how many packets that is."""
    data = open(base, "rb").read()
    header, body = data[:24], data[24:]
    order = "little" if header[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else "big"
    packets, at = 0, 0
    while at + 16 <= len(body):
        at += 16 + int.from_bytes(body[at + 8:at + 12], order)
        packets += 1
    times = max(1, size // len(body))
    with open(out, "wb") as f:
        f.write(header)
        for _ in range(times):
            f.write(body)
    return packets * times


def bench_check():
    work = tempfile.mkdtemp(prefix="pwbench-pcap-")
    base, big = f"{work}/base.pcap", f"{work}/big.pcap"
    lab_up()
    try:
        client, server, address = podwire_pods()
        dump = subprocess.Popen(inside(path(f"{LAB}-k8s-ctr"), "tcpdump", "-Z", "root", "-i", "eth1", "-s", "1500", "-U", "-w", base,
                                       "net", "10.244.0.0/16"), stderr=subprocess.DEVNULL)
        while not os.path.exists(base) or os.path.getsize(base) < 24:
            time.sleep(0.05)
        for test in ("tcp rr", "connections", "tcp stream"):
            size = "-b100M" if test == "tcp stream" else None
            if size:
                p = serve(server, 5201, 1, "iperf3", "-s", "-1", "-p", "5201")
                run(*inside(client, "iperf3", "-c", address, "-p", "5201", "-t", "2", "-b", "200M", "-M", "600"))
                stop(p)
            else:
                measure(test, "capture", client, server, address)
        dump.send_signal(signal.SIGINT)
        dump.wait()
    finally:
        lab_down()
    packets = repeat_capture(base, big, (64 if args.quick else 1024) << 20)
    size = os.path.getsize(big)
    readers = {
        "lab check": [lab, "check", big, "--pod-cidr", "10.244.0.0/16", "--node", "k8s-ctr=192.168.10.100", "--node",
                      "k8s-w1=192.168.10.101", "-o", "json"],
        "tcpdump --count": ["tcpdump", "-nr", big, "--count", "src net 10.244.0.0/16"],
        "tshark": ["tshark", "-n", "-r", big, "-Y", "ip.src==10.244.0.0/16", "-q", "-z", "io,stat,0"],
    }
    subprocess.run(["cat", big], stdout=subprocess.DEVNULL)  # all of them read from the page cache
    for n in range(rounds):
        for name, argv in readers.items():
            if name == "tshark" and n > 0:
                continue  # a minute a time
            start = time.perf_counter()
            p = subprocess.run(argv, capture_output=True, text=True)
            took = time.perf_counter() - start
            sample("check", name, "read", seconds=round(took, 3), mpps=round(packets / took / 1e6, 3), bytes=size, packets=packets,
                   code=p.returncode)
    subprocess.run(["rm", "-rf", work])
    ours = median("lab check", "read", "mpps")
    for name, aim in (("tcpdump --count", "1x or more"), ("tshark", "70x or more")):
        theirs = median(name, "read", "mpps")
        row(f"`lab check`, {packets / 1e6:.1f} M packets of {size // packets} B", f"{ours:.2f} M packets/s", f"{name} {theirs:.2f}",
            ratio(ours, theirs), aim)


def bench_ipam():
    pairs, execs = (100_000, 20) if args.quick else (2_000_000, 300)
    for _ in range(1 if args.quick else 5):
        rates = control.addresses(args.bin, pairs)
        for peer in ("pool", "recorded", "set"):
            sample("ipam", peer, "pair", per_second=rates[peer])
        sample("ipam", "host-local", "pair", per_second=round(control.host_local(execs), 1))
    for what, ours, theirs, words in (
            ("in memory", "pool", "set", "a bare ordered set"),
            ("with its record on disk", "recorded", "host-local", "host-local, an exec each way")):
        a, b = (median(peer, "pair", "per_second") for peer in (ours, theirs))
        row(f"addresses given and taken back, {what}", f"{rough(a)} a second", f"{words} {rough(b)}", ratio(a, b), "")


def bench_operator():
    nodes = 50 if args.quick else 1000
    for _ in range(1 if args.quick else 5):
        took = control.operator(args.bin, nodes)
        sample("operator", "podwire", "CIDRs", seconds=took["operator_s"], mib=took["operator_mib"])
        for writes in took["writes_s"]:  # before and after
            sample("operator", "writes", "CIDRs", seconds=writes)
    a, b = median("podwire", "CIDRs", "seconds"), median("writes", "CIDRs", "seconds")
    row(f"operator: pod CIDRs for {nodes:,} nodes, from its start", f"{a:.2f} s", f"{nodes:,} writes alone {b:.2f} s", ratio(a, b), "")
    row(f"operator: memory with {nodes:,} nodes", f"{median('podwire', 'CIDRs', 'mib'):.1f} MiB", "", "", "")


def bench_memory():
    for _ in range(rounds):
        lab_up()
        try:
            for program, word in (("podwire-agent", ""), ("podwire-operator", ""), ("podwire-kube", "control-plane")):
                sample("memory", program, "resident", mib=control.resident(f"{LAB}-k8s-ctr", program, word))
        finally:
            lab_down()
    kube = median("podwire-kube", "resident", "mib")
    for program in ("podwire-agent", "podwire-operator"):
        ours = median(program, "resident", "mib")
        row(f"memory of {program} in the lab", f"{ours:.1f} MiB", f"embedded control plane {kube:.1f} MiB", ratio(ours, kube), "")


def machine():
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown CPU")
    return f"{os.cpu_count()} x {cpu}, Linux {os.uname().release}"


def interrupted(*_):
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, interrupted)
try:
    for section in args.only.split(","):
        {"up": bench_up, "cni": bench_cni, "path": bench_path, "services": bench_services, "check": bench_check, "ipam": bench_ipam, "operator": bench_operator,
         "memory": bench_memory}[section]()
finally:
    for p in processes:
        stop(p)
    netns.remove_all()
    os.makedirs(args.out, exist_ok=True)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    with open(f"{args.out}/bench.json", "w") as f:
        json.dump({"date": day, "machine": machine(), "quick": args.quick, "table": table, "samples": samples}, f, indent=1)
    lines = [f"{day}, {machine()}" + (" (quick: not to be quoted)" if args.quick else ""), "",
             "| what | Podwire | beside | ratio | aim |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(c) for c in r) + " |" for r in table]
    with open(f"{args.out}/bench.md", "w") as f:
        f.write("\n".join(lines) + "\n")
    print("\n".join(lines))
