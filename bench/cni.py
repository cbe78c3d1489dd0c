#!/usr/bin/env python3
"""Wall time of CNI ADD and DEL, one exec a call as a container runtime does. Runs on a node (`lab exec NODE --`).

cni.py --plugin PATH --conf FILE|- [--sequential 40] [--workers 8] [--each 15]   prints one JSON object
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

ap = argparse.ArgumentParser()
ap.add_argument("--plugin", required=True)
ap.add_argument("--conf", required=True)
ap.add_argument("--sequential", type=int, default=40)
ap.add_argument("--workers", type=int, default=8)
ap.add_argument("--each", type=int, default=15)
a = ap.parse_args()
conf = sys.stdin.read() if a.conf == "-" else open(a.conf).read()
tag = f"cnibench{os.getpid()}"


def call(command, i):
    name = f"{tag}-{i}"
    env = dict(os.environ, CNI_COMMAND=command, CNI_CONTAINERID=name, CNI_NETNS=f"/run/netns/{name}", CNI_IFNAME="eth0",
               CNI_PATH=os.path.dirname(a.plugin), CNI_ARGS=f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name}")
    start = time.perf_counter()
    p = subprocess.run([a.plugin], input=conf, env=env, capture_output=True, text=True)
    took = (time.perf_counter() - start) * 1e3
    if p.returncode:
        print(f"{command} {name}: {p.stdout.strip()} {p.stderr.strip()}", file=sys.stderr)
    return took, p.returncode


def figures(calls, wall):
    good = sorted(t for t, code in calls if code == 0)
    out = {"calls": len(calls), "failed": len(calls) - len(good)}
    if good:
        out |= {"p50_ms": round(statistics.median(good), 3), "p95_ms": round(good[int(len(good) * 0.95) - 1], 3),
                "per_second": round(len(good) / wall, 1)}
    return out


total = a.sequential + a.workers * a.each
result = {}
try:
    for i in range(total):
        subprocess.check_call(["ip", "netns", "add", f"{tag}-{i}"])
    for command in ("ADD", "DEL"):
        start = time.perf_counter()
        calls = [call(command, i) for i in range(a.sequential)]
        result[f"{command} sequential"] = figures(calls, time.perf_counter() - start)
    for command in ("ADD", "DEL"):
        work = [range(a.sequential + w * a.each, a.sequential + (w + 1) * a.each) for w in range(a.workers)]
        start = time.perf_counter()
        with ThreadPoolExecutor(a.workers) as pool:
            calls = [c for part in pool.map(lambda ids: [call(command, i) for i in ids], work) for c in part]
        result[f"{command} x{a.workers}"] = figures(calls, time.perf_counter() - start)
finally:
    for i in range(total):
        subprocess.call(["ip", "netns", "del", f"{tag}-{i}"], stderr=subprocess.DEVNULL)
print(json.dumps(result))
