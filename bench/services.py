"""What the benchmark of Services sets up: Services of a lab by kubectl, and peers that do what kube-proxy does, by hand."""
import json
import subprocess

import netns
from netns import inside, path, run

PORT = 5203
NODE_PORT = 30_080
VIP = "10.96.200.200"


def many(kubectl, count):
    """As many Services without pods, made by a few kubectls at once."""
    names = [f"many-{i}" for i in range(count)]
    shares = [names[i::4] for i in range(4)]
    items = lambda share: [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                            "spec": {"ports": [{"port": 80}]}} for name in share]
    started = []
    for share in filter(None, shares):
        p = subprocess.Popen([*kubectl, "create", "--validate=false", "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             text=True)
        started.append((p, json.dumps({"apiVersion": "v1", "kind": "List", "items": items(share)})))
    for p, text in started:
        _, err = p.communicate(text)
        if p.returncode:
            raise RuntimeError(f"kubectl create: {err.strip()[:300]}")


def one(kubectl, address):
    """A Service at VIP and at NODE_PORT of every node, with a backend of ours."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bench"},
         "spec": {"type": "NodePort", "clusterIP": VIP, "ports": [{"port": PORT, "nodePort": NODE_PORT}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": "bench", "labels": {"kubernetes.io/service-name": "bench"}}, "ports": [{"port": PORT}],
         "endpoints": [{"addresses": [address], "nodeName": "k8s-w1"}]}]})
    run(*kubectl, "apply", "--validate=false", "-f", "-", input=text)


def iptables(services, address):
    """kube-proxy's iptables rules, with the Service that is asked for behind all others."""
    text = netns.kube_proxy_rules(services - 1)
    nat = text.rindex("COMMIT")
    return text[:nat] + "\n".join([
        f"-A KUBE-SERVICES -d {VIP}/32 -p tcp -m tcp --dport {PORT} -j DNAT --to-destination {address}:{PORT}",
        f"-A KUBE-SERVICES -p tcp -m tcp --dport {NODE_PORT} -m addrtype --dst-type LOCAL -j KUBE-MARK-MASQ",
        f"-A KUBE-SERVICES -p tcp -m tcp --dport {NODE_PORT} -m addrtype --dst-type LOCAL -j DNAT --to-destination {address}:{PORT}",
        "COMMIT", ""])


def nftables(services, address):
    """The same with one map, as kube-proxy's nftables mode looks Services up."""
    entries = [f"10.96.{i // 250 + 1}.{i % 250 + 1} . 80 : 10.244.1.{i % 240 + 10} . 8080" for i in range(services - 1)]
    entries.append(f"{VIP} . {PORT} : {address} . {PORT}")
    listed = ", ".join(entries)
    return f"""table ip bench {{
  map services {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; elements = {{ {listed} }} }}
  chain pre {{ type nat hook prerouting priority dstnat;
    ip protocol tcp dnat to ip daddr . tcp dport map @services
    fib daddr type local tcp dport {NODE_PORT} meta mark set 0x4000 dnat to {address}:{PORT}
  }}
  chain post {{ type nat hook postrouting priority srcnat;
    meta mark 0x4000 masquerade random
  }}
}}
"""


def peers(counts):
    """(what, name) -> (client's namespace, server's namespace, address and port to call)."""
    sw = netns.switch("svc")
    made = {}
    subnet = 100
    for count in counts:
        for kind, rules, load in (("iptables", iptables, ("iptables-restore", "-n")), ("nftables", nftables, ("nft", "-f", "-"))):
            subnet += 10
            tag = f"{kind[0]}{count}"
            addresses = [f"192.168.77.{subnet + i}" for i in range(3)]
            a, b, outside = (netns.node(sw, f"{tag}{'abo'[i]}", addresses[i]) for i in range(3))
            pod_a, pod_b = f"10.244.0.{subnet}", f"10.244.1.{subnet}"
            pa, pb = netns.routed_pod(a, f"{tag}p", pod_a), netns.routed_pod(b, f"{tag}q", pod_b)
            run("ip", "-n", a, "route", "add", f"{pod_b}/32", "via", addresses[1])
            run("ip", "-n", b, "route", "add", f"{pod_a}/32", "via", addresses[0])
            run(*inside(path(a), *load), input=rules(count, pod_b))
            made["ClusterIP", f"{kind}, {count:,} Services"] = (path(pa), path(pb), f"{VIP}:{PORT}")
            made["NodePort", f"{kind}, {count:,} Services"] = (path(outside), path(pb), f"{addresses[0]}:{NODE_PORT}")
            if kind == "iptables" and count == counts[0]:
                made["direct", "plain routing"] = (path(pa), path(pb), f"{pod_b}:{PORT}")
    return made
