#!/usr/bin/env python3
"""Real nodes, each in a network namespace of its own, hurt in every way, judged by what their clients were told.

    python3 tests/outside/faults.py BINARY [SCENARIO ...] [--seconds N] [--within N] [--nodes N] [--seed N]

Scenarios: kill, cut, pause, leave, proxy, many, delay, chaos, blackbox; without any, all but the last. `--seconds`: how
long a cut or the chaos lasts; `--within`: after how many seconds all must be the same when a cut has healed; `--nodes`:
of the chaos. `blackbox` runs the HTTP tests of cargo, --times times in a row, against six nodes behind a balancer.
A seed replays the choice of faults and requests, not their timing.
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import time
import traceback
from history import FOREVER, History, Load
from lab import Client, Lab, Node, alone, wait
from mesh import Mesh, listing, misery
from network import Network


def answered(history, nodes, begun, patience):
    """Every request to these nodes since then was answered by HTTP, in time; the longest answer in seconds."""
    names = {node.name for node in nodes}
    asked = [op for op in history.ops if op.node and op.node[0] in names and op.begun >= begun]
    for op in asked:
        assert op.ended != FOREVER and op.status in (200, 404, 412, 503), f"not answered: {op}"
        assert op.ended - op.begun < patience, f"answered late: {op}"
        assert op.kind != "get" or op.status != 503, f"a read refused: {op}"
    return max(op.ended - op.begun for op in asked)


def first_whole_write(history, node, begun):
    """Seconds from then until a write at the default level that was asked of this node later was acknowledged."""
    times = [op.ended for op in history.ops if op.node and op.node[0] == node.name and op.kind == "set"
             and op.wanted == "all" and op.status == 200 and op.begun >= begun]
    assert times, f"{node.name}: no write at w=all was acknowledged any more"
    return min(times) - begun


def kill(lab, network, options):
    mesh, history, lost = Mesh(lab, network, 5), History(), []
    for plugged in (True, False):
        load = Load(history, mesh.nodes, seed=options.seed)
        time.sleep(1.5)
        victim, others = mesh.nodes[2], mesh.nodes[:2] + mesh.nodes[3:]
        lost.append((victim.name, victim.starts))
        if not plugged:
            # No machine left that could refuse a connection.
            network.unplug(3)
        begun = time.monotonic()
        victim.kill()
        wait("its absence is seen", lambda: all(node.sees("n3") == "down" for node in others), 12.0)
        seen = time.monotonic() - begun
        assert not plugged or seen < 6.0, f"a refused redial was noticed after {seen:.1f} s only"
        time.sleep(1.5)
        network.heal()
        longest = answered(history, others, begun, 4.0)
        onward = max(first_whole_write(history, node, begun) for node in others)
        assert onward < 11.0, f"w=all went on after {onward:.1f} s only"
        victim.start()
        status = victim.json("/status")
        assert status["state"] == "ok", status["state"]
        time.sleep(1.0)
        load.stop()
        mesh.whole()
        assert all(len(node.mesh()["peers"]) == 4 for node in mesh.nodes), "the old lifetime is still there"
        how = "kill -9" if plugged else "kill -9 of a node that is cut off"
        mesh.judge(history, f"{how}: seen by all after {seen:.2f} s, w=all on after {onward:.2f} s, longest answer "
                            f"{longest:.2f} s, back and ready in {victim.ready_after:.2f} s", lost=lost)


def cut(lab, network, options):
    seconds = options.seconds or 14
    mesh = Mesh(lab, network, 5)
    history = History()
    full = mesh.metric("meshkv_pulls_total", kind="full")
    load = Load(history, mesh.nodes, seed=options.seed)
    time.sleep(1.5)
    network.split([1, 2, 3], [4, 5])
    for n, node in ((1, mesh.nodes[0]), (2, mesh.nodes[4])):
        time.sleep(seconds / 3)
        client = node.client()
        cleared = history.clear(client, (node.name, node.starts))
        assert cleared.ended != FOREVER, cleared
        client.close()
    time.sleep(seconds / 3)
    sides = [{node.sees(other.name) for other in mesh.nodes[3:]} for node in mesh.nodes[:3]]
    assert seconds < 12 or all(side == {"down"} for side in sides), sides
    load.stop()
    one, other = listing(mesh.nodes[0]), listing(mesh.nodes[4])
    differ = sum(one.get(key) != other.get(key) for key in {*one, *other})
    assert differ > 20, f"the two sides differ in {differ} keys only: nothing was tested"
    begun = time.monotonic()
    network.heal()
    mesh.same()
    took = time.monotonic() - begun
    assert took < options.within, f"the same everywhere after {took:.2f} s only"
    copies = mesh.metric("meshkv_pulls_total", kind="full") - full
    assert copies == 0, f"{copies} full copies"
    moved = mesh.metric("meshkv_repair_entries_total", direction="received")
    mesh.whole()
    mesh.judge(history, f"cut 3|2 for {seconds} s: {differ} keys differed, the same everywhere {took:.2f} s after "
                        f"healing, no full copy, {moved:.0f} records by pulls since the start, "
                        f"{mesh.metric('meshkv_replication_resumes_total'):.0f} streams resumed")


def pause(lab, network, options):
    mesh = Mesh(lab, network, 3)
    history = History()
    # A paused node must not hold up this program's own clients for long.
    load = Load(history, mesh.nodes, timeout=3.0, seed=options.seed)
    for seconds in (2, 12):
        time.sleep(1.0)
        stopped = mesh.nodes[seconds % 3]
        begun = time.monotonic()
        stopped.signal(signal.SIGSTOP)
        time.sleep(seconds)
        others = [node for node in mesh.nodes if node is not stopped]
        assert seconds < 11 or all(node.sees(stopped.name) == "down" for node in others)
        answered(history, others, begun, 4.0)
        stopped.signal(signal.SIGCONT)
        time.sleep(2.0)
        mesh.whole()
    load.stop()
    mesh.judge(history, "SIGSTOP for 2 s and for 12 s, then SIGCONT")


def leave(lab, network, options):
    mesh = Mesh(lab, network, 3)
    history = History()
    load = Load(history, mesh.nodes, levels=("local",), pause=0.001, seed=options.seed)
    took = []
    for n in range(3):
        time.sleep(1.0)
        leaver = mesh.nodes[n]
        begun = time.monotonic()
        leaver.stop()
        took.append(time.monotonic() - begun)
        leaver.address = None
        leaver.start()
    load.stop()
    mesh.whole()
    local = sum(op.wanted == "local" and op.status == 200 for op in history.ops)
    mesh.judge(history, f"SIGTERM under load, three times ({max(took):.2f} s at most): {local} writes at w=local, none lost")


def balancer(lab, nodes, port=7000):
    backends = ",".join(f"{node.address[0]}:{node.address[1]}" for node in nodes)
    lab.background(lab.binary, "balance", "--port", str(port), "--status-port", "0", "--backends", backends,
                   stderr=subprocess.DEVNULL)
    address = ("127.0.0.1", port)

    def serves():
        try:
            return Client(address).get("/healthcheck")[0] == 200
        except OSError:
            return False
    wait("the balancer serves", serves)
    return address


def proxy(lab, network, options):
    mesh = Mesh(lab, network, 3)
    address = balancer(lab, mesh.nodes)
    history, dice = History(), random.Random(options.seed)
    names = set()

    def ask(what, *words, **more):
        # A connection each, so that the next one goes to the next node.
        client = Client(address)
        op = what(client, *words, **more)
        client.close()
        assert op.ended != FOREVER, op
        return op
    begun = time.monotonic()
    while time.monotonic() - begun < 5.0:
        key = f"k{dice.randrange(20)}"
        write = ask(history.rm if dice.random() < 0.2 else history.set, key)
        assert write.status in (200, 404), write
        assert ask(history.read, key).status == (200 if write.kind == "set" else 404)
        # At w=local another node may not have it yet, unless it is asked to wait for it.
        late = ask(history.set, f"t{dice.randrange(20)}", wanted="local")
        names.add(late.token.split("-")[0])
        assert ask(history.read, late.key, after=late).status == 200
    assert len(names) == 3, f"the proxy used {len(names)} nodes"
    mesh.judge(history, f"through a round-robin proxy before {len(names)} nodes", is_whole=True)


def many(lab, network, options):
    first = Node(lab, "m0")
    begun = time.monotonic()
    nodes = [first] + [Node(lab, f"m{n}", [first.url()], ready=False) for n in range(1, 20)]
    for node in nodes[1:]:
        node.wait_ready(60.0)
    ready = time.monotonic() - begun
    wait("everybody knows everybody", lambda: all(node.mesh()["size"] == 20 for node in nodes), 60.0)
    took = time.monotonic() - begun
    assert nodes[7].ok("/set?k=k&v=1&w=20") and all(node.ok("/get?k=k") == '"1"' for node in nodes)
    print(f"ok: 20 nodes from one URL: all ready after {ready:.2f} s, all known to all after {took:.2f} s", flush=True)


def delay(lab, network, options):
    mesh = Mesh(lab, network, 3)
    if not network.delay(1, 40):
        print("SKIPPED: this kernel has no netem; delayed links are not tested here (the simulator has them)", flush=True)
        return False
    history = History()
    load = Load(history, mesh.nodes, seed=options.seed)
    time.sleep(6.0)
    load.stop()
    mesh.judge(history, "40 ms of delay on one node's links")


def chaos(lab, network, options):
    seconds, count = options.seconds or 25, options.nodes
    mesh = Mesh(lab, network, count)
    history, dice, lost = History(), random.Random(options.seed), []
    load = Load(history, mesh.nodes, threads=1, timeout=3.0, seed=options.seed)
    done = misery(mesh, dice, seconds, lost)
    load.stop()
    mesh.whole(60.0)
    # A node that was killed may have been alone when it acknowledged at w=all.
    mesh.judge(history, f"{count} nodes, {seconds} s, seed {options.seed}: {done}", lost=lost, safe=("quorum",))


def suite():
    """The test binaries that can be pointed at any server; the last one empties it."""
    names = ("http", "edges", "whole_store")
    words = [word for name in names for word in ("--test", name)]
    # Of the whole workspace, as the tests are run elsewhere: other features would compile everything once more.
    command = ["cargo", "test", "--workspace", "--locked", "--no-run", "--message-format=json", *words]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    artifacts = [json.loads(line) for line in built.stdout.splitlines()]
    found = {one["target"]["name"]: one["executable"] for one in artifacts if one.get("executable")}
    return [found[name] for name in names]


def blackbox(lab, network, options):
    binaries = suite()
    mesh = Mesh(lab, network, 6)
    address = balancer(lab, mesh.nodes)
    environment = {**os.environ, "SERVICE_URL": f"http://{address[0]}:{address[1]}"}
    begun, tests = time.monotonic(), 0
    for n in range(options.times):
        for binary in binaries:
            done = subprocess.run([binary], capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"run {n + 1}, {binary}:\n{done.stdout[-4000:]}"
            tests += int(re.search(r"^test result: ok. (\d+) passed", done.stdout, re.M)[1])
        if (n + 1) % 10 == 0:
            print(f"    {n + 1} runs after {time.monotonic() - begun:.0f} s", flush=True)
    assert tests >= 20 * options.times, f"{tests} tests only"
    print(f"ok: black-box suite, {options.times} times in a row through a proxy before 6 nodes: {tests} tests passed in "
          f"{time.monotonic() - begun:.0f} s", flush=True)


SCENARIOS = {one.__name__: one for one in (kill, cut, pause, leave, proxy, many, delay, chaos)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--within", type=float, default=30.0)
    parser.add_argument("--nodes", type=int, default=9)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MESHKV_SEED", "0")) or random.randrange(1 << 31))
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args()
    if not alone():
        return
    print(f"seed {options.seed}", flush=True)
    network, passed, skipped = Network(max(9, options.nodes)), 0, 0
    for name in options.scenarios:
        lab = Lab(options.binary)
        try:
            ran = {**SCENARIOS, "blackbox": blackbox}[name](lab, network, options) is not False
            passed, skipped = passed + ran, skipped + (not ran)
        except BaseException:
            lab.end_processes()
            traceback.print_exc()
            print(f"FAILED: {name}, seed {options.seed}; logs in {lab.folder}", flush=True)
            # At once: clients may still be asking.
            os._exit(1)
        network.heal()
        lab.close()
    print(f"faults: {passed} passed, 0 failed, {skipped} skipped", flush=True)


main()
