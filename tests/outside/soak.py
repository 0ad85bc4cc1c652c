#!/usr/bin/env python3
"""Nodes under load and under faults for as long as one likes, and whether what they hold stays bounded.

    python3 tests/outside/soak.py BINARY [--minutes N] [--nodes N] [--seed N]

Judged clients ask for few keys over and over; besides, each node's keys of another kind are set and removed all the
time, with values as long as they may be. Every few seconds resident memory, descriptors and the node's own figures are
taken of each node; a table at the end says what the most of any node was in the first and in the last third. It fails
if the last third is higher by more than a quarter and 16 MiB (or 32, of what is not bytes), if a node's memory beyond
its store exceeds its log and as much again, or if what clients were told cannot have been.
"""
import argparse
import os
import random
import threading
import time
import traceback
from mesh import Mesh, listing, misery
from history import Check, History, Load
from lab import Client, Lab, alone
from network import Network

# The first ones are judged; the others go with the faults.
JUDGED = 3
WATCHED = ["process_resident_memory_bytes", "process_open_fds", "meshkv_memory_bytes", "meshkv_tombstones",
           "meshkv_replication_pending_operations"]
# The log's limit, of all workers together: src/limits.rs.
LOG = 64 << 20


class Watch(threading.Thread):
    """Takes the figures of all nodes that answer. A lifetime's first seconds do not count: it copies."""

    def __init__(self, nodes, settle=20.0):
        super().__init__(daemon=True)
        self.nodes, self.settle, self.rows = nodes, settle, []
        self.stopping = threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(2.0):
            for node in self.nodes:
                if node.address is None or time.monotonic() - node.begun < self.settle:
                    continue
                try:
                    page = node.get("/metrics", 2.0)[2]
                except OSError:
                    continue
                row = dict.fromkeys(WATCHED, 0.0)
                for line in page.splitlines():
                    name, _, value = line.partition(" ")
                    name = name.partition("{")[0]
                    if name in row and not line.startswith("#"):
                        row[name] += float(line.rsplit(" ", 1)[1])
                self.rows.append((time.monotonic(), node.name, row))

    def third(self, which, name):
        """The most that any node had in this third of the time."""
        first, last = self.rows[0][0], self.rows[-1][0]
        span = (last - first) / 3 + 0.001
        values = [row[name] for at, _, row in self.rows if int((at - first) / span) == which]
        return max(values, default=0.0)


def churn(node, dice, stopping):
    """Fills this node with keys of its own and takes them away again; nobody judges these. Counts what was asked."""
    prefix, asked = f"c{node.name}", 0
    while not stopping.is_set():
        try:
            client = Client(node.address, 3.0) if node.address else None
            if client is None:
                stopping.wait(0.2)
                continue
            for n in range(3000):
                what = "rm" if dice.random() < 0.4 else "set"
                value = "&v=" + "x" * dice.randrange(1, 256) if what == "set" else ""
                client.get(f"/{what}?k={prefix}-{dice.randrange(5000)}{value}&w=local")
                asked += 1
                time.sleep(0.001)
                if stopping.is_set():
                    break
            client.close()
        except OSError:
            stopping.wait(0.2)
    node.asked = asked


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MESHKV_SEED", "0")) or random.randrange(1 << 31))
    options = parser.parse_args()
    if not alone():
        return
    print(f"seed {options.seed}", flush=True)
    network, lab = Network(options.nodes), Lab(options.binary)
    try:
        soak(lab, network, options)
        lab.close()
    except BaseException:
        lab.end_processes()
        traceback.print_exc()
        print(f"FAILED: soak, seed {options.seed}; logs in {lab.folder}", flush=True)
        os._exit(1)


def differing(listings, most=5):
    """Some keys that not all have alike, and what each node has."""
    if not all(isinstance(one, dict) for one in listings):
        return ["serves" if isinstance(one, dict) else "does not serve" for one in listings]
    held = {key: [one.get(key) for one in listings] for key in sorted({key for one in listings for key in one})}
    unlike = [(key, values) for key, values in held.items() if any(value != values[0] for value in values)]
    return dict(unlike[:most])


def soak(lab, network, options):
    mesh, dice, stopping = Mesh(lab, network, options.nodes), random.Random(options.seed), threading.Event()
    # Churn first, so that the first third of the figures is not the filling.
    churns = [threading.Thread(target=churn, args=(node, random.Random(options.seed + n), stopping), daemon=True)
              for n, node in enumerate(mesh.nodes)]
    for thread in churns:
        thread.start()
    time.sleep(10.0)
    watch, begun, rounds, judged = Watch(mesh.nodes), time.monotonic(), 0, 0
    while time.monotonic() - begun < options.minutes * 60:
        # A history a round, so that it can be judged and let go.
        history, lost = History(), []
        load = Load(history, mesh.nodes, keys=300, threads=1, pause=0.01, timeout=3.0, seed=options.seed + rounds,
                    prefix=f"r{rounds}k")
        done = misery(mesh, dice, min(60.0, options.minutes * 60 - (time.monotonic() - begun)), lost)
        load.stop()
        mesh.whole(90.0)
        rounds, judged = rounds + 1, judged + len(history.ops)
        time.sleep(1.0)
        finals = [listing(node, f"r{rounds - 1}k") for node in mesh.nodes]
        if any(final != finals[0] for final in finals):
            # Whether they were only late, or have parted for good, is another fault.
            time.sleep(10.0)
            later = [listing(node, f"r{rounds - 1}k") for node in mesh.nodes]
            raise AssertionError(f"the nodes differ: {differing(finals)}; ten seconds later: {differing(later) or 'no more'}")
        Check(history, lost=lost, final=finals[0], safe=("quorum",)).assert_clean()
        print(f"round {rounds}: {done}", flush=True)
        now = {node.name: f"{node.metric('process_resident_memory_bytes') / 2**20:.0f} MiB" for node in mesh.nodes}
        print(f"    resident {now}", flush=True)
    stopping.set()
    for thread in churns:
        thread.join()
    watch.stopping.set()
    watch.join()
    mesh.same()
    print(f"soak: {options.nodes} nodes, {(time.monotonic() - begun) / 60:.1f} min, {rounds} rounds, {judged} judged requests, "
          f"{sum(node.asked for node in mesh.nodes)} of churn; most of any node in the first and the last third:")
    for at, name in enumerate(WATCHED):
        before, after = watch.third(0, name), watch.third(2, name)
        print(f"    {name}: {before:.0f}, {after:.0f}", flush=True)
        most = before * 1.25 + (16 << 20 if name.endswith("bytes") else 32)
        assert at >= JUDGED or after <= most, f"{name} grows"
    beyond = max(row["process_resident_memory_bytes"] - row["meshkv_memory_bytes"] for _, _, row in watch.rows)
    print(f"    resident beyond the store, at most: {beyond / 2**20:.0f} MiB; the log may have {LOG >> 20}", flush=True)
    assert beyond < 2 * LOG, "memory that nothing accounts for"
    print(f"    rebirths: {mesh.metric('meshkv_rebirths_total'):.0f}; full copies: {mesh.metric('meshkv_pulls_total', kind='full'):.0f}, partial: "
          f"{mesh.metric('meshkv_pulls_total', kind='partial'):.0f}")
    print("soak: 1 passed, 0 failed")


main()
