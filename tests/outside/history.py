"""What clients asked, when, and what they were told; and whether that can have been.

Every write has a value of its own, so a read names the write that it saw. Of two operations on a key it is known
which one is the later (has the greater stamp) if a node had shown the first, as its own answer or as a read, before
it was asked for the second: a node stamps above all that it has seen. Known orders add up along chains. Everything
else is concurrent, and either may win.
"""
import collections
import json
import random
import threading
import time
from lab import Client

FOREVER = float("inf")


class Op:
    """A request. `node`: (name, lifetime) that was asked; none through a balancer. `key`: none for a clear."""
    __slots__ = ("kind", "key", "value", "node", "begun", "ended", "status", "wanted", "token", "after", "seen", "result")

    def __init__(self, kind, key, value, node, wanted=None, after=None):
        self.kind, self.key, self.value, self.node, self.wanted, self.after = kind, key, value, node, wanted, after
        self.begun, self.ended, self.status, self.token, self.result = time.monotonic(), FOREVER, 0, None, None
        # By node: the earliest time at which it had shown this, or something known to be later.
        self.seen = {}

    def __repr__(self):
        when = f"{self.begun:.3f}..{self.ended:.3f}"
        return f"{self.kind} {self.key} {self.value or ''} at {self.node} {when} -> {self.status} {self.result or ''}"


class History:
    def __init__(self):
        self.ops, self.lock, self.serial = [], threading.Lock(), 0

    def unique(self):
        with self.lock:
            self.serial += 1
            return f"v{self.serial}"

    def ask(self, client, op, path):
        try:
            op.status, headers, op.result = client.get(path)
            op.ended, op.token = time.monotonic(), headers.get("x-mesh-token")
        except OSError as error:
            op.result = repr(error)
        with self.lock:
            self.ops.append(op)
        return op

    def set(self, client, key, node=None, wanted=None):
        value = self.unique()
        path = f"/set?k={key}&v={value}" + (f"&w={wanted}" if wanted else "")
        return self.ask(client, Op("set", key, value, node, wanted or "all"), path)

    def rm(self, client, key, node=None, wanted=None):
        path = f"/rm?k={key}" + (f"&w={wanted}" if wanted else "")
        return self.ask(client, Op("rm", key, None, node, wanted or "all"), path)

    def clear(self, client, node=None):
        return self.ask(client, Op("clear", None, None, node, "all"), "/clear")

    def read(self, client, key, node=None, after=None):
        path = f"/get?k={key}" + (f"&after={after.token}" if after else "")
        return self.ask(client, Op("get", key, None, node, after=after), path)


class Load:
    """Clients that keep asking: `threads` for each of the nodes, over `keys` keys, until stopped."""

    def __init__(self, history, nodes, keys=150, threads=2, pause=0.004, levels=(None, None, "local", "quorum", "all"),
                 timeout=5.0, seed=0, prefix="k"):
        self.prefix = prefix
        self.history, self.keys, self.pause, self.levels, self.timeout = history, keys, pause, levels, timeout
        self.stopping = threading.Event()
        self.nodes = list(nodes)
        self.threads = [threading.Thread(target=self._run, args=(node, random.Random(seed * 1000 + 31 * at + n)),
                                         daemon=True)
                        for at, node in enumerate(self.nodes) for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def _run(self, node, dice):
        client, others = None, {}
        lifetime = None
        while not self.stopping.is_set():
            time.sleep(self.pause * 2 * dice.random())
            address = node.address
            if address is None:
                continue
            if lifetime != node.starts:
                lifetime, client = node.starts, Client(address, self.timeout)
            at, key = (node.name, lifetime), f"{self.prefix}{dice.randrange(self.keys)}"
            throw = dice.random()
            if throw < 0.5:
                op = self.history.read(client, key, at)
            elif throw < 0.85:
                op = self.history.set(client, key, at, dice.choice(self.levels))
                if op.token and dice.random() < 0.2:
                    # Read one's own write through somebody else.
                    other = dice.choice(self.nodes)
                    if other.address:
                        there = others.setdefault((other.name, other.starts), Client(other.address, self.timeout))
                        self.history.read(there, key, (other.name, other.starts), after=op)
            else:
                op = self.history.rm(client, key, at, dice.choice(self.levels))
            if op.ended == FOREVER:
                # Whoever died does not need to be asked so often.
                self.stopping.wait(0.05)


def is_stored(op):
    """It took effect for sure where it was asked. A removal of nothing has no stamp and leaves no trace."""
    return op.kind != "get" and (op.status == 200 or op.status == 503 and '"stored":true' in (op.result or ""))


def may_be_stored(op):
    return op.kind != "get" and (is_stored(op) or op.ended == FOREVER or op.status >= 500)


class Check:
    """Judges a history.

    `final`: key to value, the same at all nodes at the end. `lost`: nodes (name, lifetime) that were killed; what
    they had acknowledged at one of the levels `safe` must be there all the same. `is_whole`: the mesh was, all the time.
    """

    def __init__(self, history, lost=(), final=None, safe=("all", "quorum"), is_whole=False):
        self.lost, self.final, self.safe, self.is_whole = set(lost), final, safe, is_whole
        self.counts = collections.Counter()
        self.faults = []
        by_key = collections.defaultdict(list)
        clears = [op for op in history.ops if op.kind == "clear" and may_be_stored(op)]
        for op in history.ops:
            self.counts[f"{op.kind} {op.status or 'none'}"] += 1
            if op.kind != "clear":
                by_key[op.key].append(op)
        if final is not None:
            for key in set(final) - set(by_key):
                self.faults.append(f"{key} is there at the end, and was never written")
        for key, ops in by_key.items():
            self._key(key, ops, clears)

    def _key(self, key, ops, clears):
        writes = sorted([op for op in ops if may_be_stored(op)] + clears, key=lambda op: op.begun)
        named = {op.value: op for op in writes if op.kind == "set"}
        removals = [op for op in writes if op.kind != "set"]
        reads = []
        for op in writes:
            op.seen = {op.node: op.ended} if is_stored(op) and op.node else {}
        for read in ops:
            if read.kind == "get" and read.status in (200, 404):
                write = named.get(json.loads(read.result)) if read.status == 200 else None
                if read.status == 200 and (write is None or write.begun > read.ended):
                    self.faults.append(f"never written for this key: {read}")
                    continue
                reads.append((read, write))
                if write and read.node:
                    write.seen[read.node] = min(write.seen.get(read.node, FOREVER), read.ended)
        # From the last to the first: whoever is later than a later one is later as well.
        for at in range(len(writes) - 1, -1, -1):
            seen = writes[at].seen
            for later in writes[at + 1:]:
                if later.node in seen and seen[later.node] < later.begun:
                    for node, when in later.seen.items():
                        if when < seen.get(node, FOREVER):
                            seen[node] = when
        self._reads(reads, writes, removals)
        if self.is_whole:
            self._whole(reads, [op for op in writes if op.status == 200], removals)
        if self.final is not None:
            self._final(key, writes, named, removals)

    @staticmethod
    def before(first, second):
        """`first` is known to have the lesser stamp."""
        return first is not second and second.node in first.seen and first.seen[second.node] < second.begun

    def explained(self, what, shown, removals, until):
        """Nothing that is known to be older than `what` is shown after it."""
        if shown is None:
            return what.kind != "set" or any(
                op.begun <= until and not self.before(op, what) for op in removals)
        return shown is what or not self.before(shown, what)

    def _reads(self, reads, writes, removals):
        by_node = collections.defaultdict(list)
        for write in writes:
            if is_stored(write) and write.node:
                by_node[write.node].append((write, write))
        for read, write in reads:
            if read.node:
                by_node[read.node].append((read, write))
            if read.after:
                self.counts["reads of a token"] += 1
                if not self.explained(read.after, write, removals, read.ended):
                    self.faults.append(f"not even what its token names: {read} after {read.after}")
        for node, here in by_node.items():
            here.sort(key=lambda pair: pair[0].begun)
            # What was shown before, by reads and by the answers to writes; those that overlap may come in any order.
            shown = []
            for op, write in here:
                if op.kind == "get":
                    for earlier, value in shown:
                        if earlier.ended < op.begun and value:
                            self.counts["reads in order"] += 1
                            if not self.explained(value, write, removals, op.ended):
                                self.faults.append(f"went back at {node}: {earlier}, then {op}")
                shown = (shown + [(op, write)])[-12:]

    def _whole(self, reads, acknowledged, removals):
        """Without faults: who reads after an answer at the default level sees it."""
        for read, shown in reads:
            for write in acknowledged:
                if write.wanted == "all" and write.ended < read.begun:
                    self.counts["reads after answers"] += 1
                    # A single client, one after the other: the later one has the greater stamp.
                    older = shown is not None and shown.ended < write.begun and shown.wanted == "all"
                    if older and shown.status == 200 or not self.explained(write, shown, removals, read.ended):
                        self.faults.append(f"did not see {write}: {read}")

    def _final(self, key, writes, named, removals):
        value = self.final.get(key)
        shown = named.get(value)
        if value is not None and shown is None:
            self.faults.append(f"{key} is {value} at the end, which was never written")
            return
        for op in writes:
            survives = op.node not in self.lost or op.wanted in self.safe and op.status == 200
            if is_stored(op) and survives:
                self.counts["writes to be found"] += 1
                if not self.explained(op, shown, removals, FOREVER):
                    self.faults.append(f"lost or back: at the end {key} is {shown or 'not there'}, after {op}")

    def assert_clean(self):
        assert not self.faults, f"{len(self.faults)} faults:\n  " + "\n  ".join(self.faults[:10])
        return ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
