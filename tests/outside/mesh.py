"""A mesh of real nodes in namespaces, and what can be done to it."""
import http.client
import json
import signal
import time
from history import Check
from lab import Node, wait


class Mesh:
    """Nodes in namespaces, which joined through the first."""

    def __init__(self, lab, network, count):
        self.network = network
        self.nodes = [Node(lab, f"n{n}", [network.mesh_url(1)] if n > 1 else [], network.where(n))
                      for n in range(1, count + 1)]
        # Whoever comes again finds somebody, whoever of the first two that is.
        for node in self.nodes:
            node.join = [network.mesh_url(1), network.mesh_url(2)]
        self.whole()

    def whole(self, limit=30.0):
        def settled():
            return all(sum(p["state"] == "alive" for p in node.mesh()["peers"]) == len(self.nodes) - 1
                       for node in self.nodes)
        return wait("everybody sees everybody", settled, limit, 0.05)

    def metric(self, name, **labels):
        return sum(node.metric(name, **labels) for node in self.nodes)

    def same(self, limit=30.0):
        """The seconds until all nodes hold the same, and what."""
        seen = []

        def equal():
            seen[:] = [listing(node) for node in self.nodes]
            return all(one == seen[0] for one in seen)
        took = wait("all nodes hold the same", equal, limit)
        return took, seen[0]

    def judge(self, history, what, **more):
        _, final = self.same()
        # What is the same for a moment must stay so.
        time.sleep(1.5)
        assert self.same(0.5)[1] == final, "it changed, with nobody writing"
        said = Check(history, final=final, **more).assert_clean()
        print(f"ok: {what}\n    {said}; {len(final)} records", flush=True)


def listing(node, prefix=""):
    """Keys and values of a node. Nobody is equal to one that does not serve."""
    # Listings come in chunks, which `Client` does not know.
    connection = http.client.HTTPConnection(*node.address, timeout=5.0)
    connection.request("GET", f"/getAll?prefix={prefix}" if prefix else "/getAll")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return {record["k"]: record["v"] for record in json.loads(body)} if answer.status == 200 else object()


def misery(mesh, dice, seconds, lost):
    """Hurts the mesh for so long, then heals it. What was done, as a text."""
    network, count = mesh.network, len(mesh.nodes)
    end, done, deck = time.monotonic() + seconds, {}, []
    while time.monotonic() < end:
        # Each once before any comes again.
        deck = deck or dice.sample(["split", "cut", "one way", "unplug", "pause", "kill"], 6)
        what = deck.pop()
        done[what] = done.get(what, 0) + 1
        node = dice.choice(mesh.nodes)
        n = mesh.nodes.index(node) + 1
        # Longer than it takes to be down only where there is time for the others as well.
        lasts = min(dice.choice([0.5, 2.0, 4.0] + [13.0] * (seconds >= 60)), max(0.5, end - time.monotonic()))
        if what == "split":
            shuffled = dice.sample(range(1, count + 1), count)
            at = dice.randrange(1, count)
            network.split(shuffled[:at], shuffled[at:])
        elif what in ("cut", "one way"):
            for _ in range(dice.randrange(1, count)):
                network.cut(*dice.sample(range(1, count + 1), 2), back=what == "cut")
        elif what == "unplug":
            network.unplug(n)
        elif what == "pause":
            node.signal(signal.SIGSTOP)
        else:
            lost.append((node.name, node.starts))
            node.kill()
            node.address = None
            # Back with another clock: a little wrong, or one that jumps by an hour or two, which nobody may notice. Not by
            # the same as another's: most of them with one jump are right, and whoever has not jumped is not.
            jump = dice.randrange(3_600_000, 7_200_000)
            clock = dice.choice(["0", "200", "-200", f"{jump}@2", f"-{jump}@2"])
            node.env["MESHKV_TEST_CLOCK"] = clock
            named = clock.replace(str(jump), "hours")
            done[f"clock {named}"] = done.get(f"clock {named}", 0) + 1
        time.sleep(lasts)
        network.heal()
        if what == "pause":
            node.signal(signal.SIGCONT)
        elif what == "kill":
            node.start()
        time.sleep(dice.choice([0.1, 1.0, 3.0]))
    return ", ".join(f"{n} x {what}" for what, n in sorted(done.items()))
