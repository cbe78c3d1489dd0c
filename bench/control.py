"""What Podwire's own programs cost beside their limits: addresses, pod CIDRs, memory."""
import json
import os
import re
import subprocess
import tempfile
import time

import netns
from netns import inside, path, run

CNI_BIN = "/usr/lib/cni"


def addresses(bin_dir, pairs):
    """Addresses given and taken back a second: by the pool, with its record on disk, and by an ordered set."""
    with tempfile.TemporaryDirectory(prefix="pwbench-ipam-") as work:
        return json.loads(run(os.path.join(bin_dir, "examples", "ipam_rate"), work, str(pairs)))


def host_local(pairs):
    """The same by CNI's host-local, as it is used: an exec to give, an exec to take back."""
    with tempfile.TemporaryDirectory(prefix="pwbench-ipam-") as work:
        conf = json.dumps({"cniVersion": "1.0.0", "name": "bench", "type": "host-local", "ipam": {
            "type": "host-local", "dataDir": work, "ranges": [[{"subnet": "10.0.0.0/24"}]]}})
        start = time.perf_counter()
        for i in range(pairs):
            for command in ("ADD", "DEL"):
                env = dict(os.environ, CNI_COMMAND=command, CNI_CONTAINERID=f"bench-{i}", CNI_NETNS="/run/netns/bench",
                           CNI_IFNAME="eth0", CNI_PATH=CNI_BIN)
                run(f"{CNI_BIN}/host-local", input=conf, env=env)
        return pairs / (time.perf_counter() - start)


def operator(bin_dir, nodes):
    """Seconds until the operator has given `nodes` nodes their pod CIDRs, beside those of as many writes; see the example."""
    ns = netns.add("cluster")
    with tempfile.TemporaryDirectory(prefix="pwbench-cluster-") as work:
        server = subprocess.Popen(inside(path(ns), os.path.join(bin_dir, "examples", "apiserver"), work), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            kubeconfig = server.stdout.readline().strip()
            if not kubeconfig:
                raise RuntimeError("the API server does not start")
            return json.loads(run(*inside(path(ns), os.path.join(bin_dir, "examples", "operator_rate"),
                                          os.path.join(bin_dir, "podwire-operator"), str(nodes)),
                                  env=dict(os.environ, KUBECONFIG=kubeconfig)))
        finally:
            server.kill()
            server.wait()
            netns.remove_all()


def resident(ns, program, word=""):
    """MiB that `program` holds on a node; `word` is one of its arguments, where there are several of it."""
    want = os.stat(path(ns)).st_ino
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{p}/cmdline").read().split("\0")
            if os.path.basename(words[0]) == program and word in [*words, ""] and os.stat(f"/proc/{p}/ns/net").st_ino == want:
                return round(int(re.search(r"VmRSS:\s+(\d+) kB", open(f"/proc/{p}/status").read()).group(1)) / 1024, 1)
        except OSError:
            pass  # it has ended
    raise RuntimeError(f"{program} does not run in {ns}")
