#!/usr/bin/env python3
"""The Wireshark dissector against the golden vectors and against real nodes: python3 tests/outside/dissector.py BINARY

Vectors: each in a TCP stream of a capture that this program writes, once in one segment and once byte by byte.
Nodes: three of them on a loopback of their own are set, removed, cleared, joined and stopped while dumpcap listens;
what tshark then says is compared with what was done, and every byte of every link must be in a field.
"""
import collections
import os
import re
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from lab import Lab, Node, alone

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = os.path.join(HERE, "..", "..", "proto-spec")
PREAMBLE = b"meshkv\x01\x01" + bytes(8)
TYPES = ["PREAMBLE", "HELLO", "WELCOME", "REFUSE", "OPS", "RESTART", "MARK", "ACK", "BEAT", "ECHO", "PULL",
         "PULL_BEGIN", "RECORDS", "PULL_END", "LINEAGE"]
SKIPPABLE = {129: "DIGEST_ASK", 130: "DIGEST"}

# What the golden frames stand for, field by field in their order; written from src/peer/vector_tests.rs.
N1 = "inc={n:032x} family=4 ip4=10.0.0.1 peer_port=7373 http_port=8080 workers=2 text_length=2 name=n1"
HELD = ("number=1 origin={two:032x} openness=1 workers=1 applied=5 closed=0x500 number=1 base=7 upto=9 "
        "number=2 surplus=0x3 upto_hlc=0x600 surplus=0x4 upto_hlc=0x700"
        .format(two=2))
OP = "op={k} op_expires={e} op_marks={m} op_rest=0 hlc=0x1 hlc_time={t} key_length={kl} value_length={vl}"
SET = OP.format(k=0, e=0, m=3, t="EPOCH", kl=1, vl=1) + " key=k value=v"
RM = OP.format(k=1, e=0, m=0, t="EPOCH", kl=1, vl=0) + " key=k"
EXPECTED = {
    "hello": N1.format(n=1) + f" lineage={9:032x} empty=1 worker=1",
    "hello over IPv6": f"inc={3:032x} family=6 ip6=fd00::1 peer_port=1 http_port=8080 workers=2 text_length=2 name=n1"
                       f" lineage={0:032x} empty=0 worker=0",
    "welcome": N1.format(n=2) + f" lineage={9:032x} empty=0 applied=17 joining=1",
    "refuse": "reason=2 text_length=2 detail=no",
    "ops": "first=4 count=4 ack_now=1 " + SET + " "
           + OP.format(k=0, e=1, m=0, t="EPOCH", kl=1, vl=4) + " expires_ms=99 key=k value=😀 " + RM + " "
           + OP.format(k=2, e=0, m=0, t="EPOCH", kl=0, vl=0),
    "restart": "base=10",
    "mark": "seq=10 closed=0x10000",
    "ack": "applied=3 base=5 upto=8",
    "beat": "sent_ns=1 phase=2 view=0x2 stable=0x3 floor=0x4 number=2 " + N1.format(n=1) + " fenced=0 "
            + N1.format(n=2) + f" fenced=1 number=1 removed={7:032x} number=1 stranger={8:032x} " + HELD,
    "echo": "sent_ns=1 wall_ms=2 jump_ms=-3 counts_you=1 number=2 head=3 head=4",
    "pull": "id=1 above=0x2",
    "pull begin": f"id=1 lineage={9:032x} floor=0x4 stable=0x8 clear=0x5 clear_writer={6:032x} " + HELD,
    "records": f"id=1 writers=2 writer={5:032x} writer={6:032x} writer_index=0 {SET} writer_index=1 {RM}",
    "pull end": f"id=1 number=1 grown={2:032x}",
    "lineage": f"lineage={9:032x}",
    "digest ask": f"id=1 view=0x2 floor=0x3 until_ms=4 digest_key={5:032x} number=2 group=6 group=4095",
    "digest": "id=1 clear=0x2 last=1 valid=1 number=0 number=2 key_hash=0x3 hlc=0x4 content=0x5 key_hash=0x6 hlc=0x7 "
              "content=0x0",
}
# Clients' ports, which the capture leaves out.
HTTP = 8001
passed = 0


def ok(text):
    global passed
    passed += 1
    print(f"ok: {text}", flush=True)


class Unit:
    """One preamble, frame or Noise message, as tshark shows it."""

    def __init__(self, element):
        self.start, self.size = int(element.get("pos")), int(element.get("size"))
        self.title = element.get("showname")
        self.fields = []
        covered = bytearray(self.size)
        for field in element.iter("field"):
            name = field.get("name")
            if name.startswith("meshkv.") and name != "meshkv.malformed":
                self.fields.append((name[7:], field.get("show")))
                at = int(field.get("pos")) - self.start
                if name != "meshkv.defect" and not any(True for _ in field):
                    covered[at:at + int(field.get("size"))] = b"\1" * int(field.get("size"))
        # The preamble's first bytes are its name, and have no field.
        self.holes = covered[6:].count(0) if self.title.endswith("PREAMBLE") else covered.count(0)

    def get(self, name):
        return next((show for known, show in self.fields if known == name), None)

    def all(self, name):
        return [show for known, show in self.fields if known == name]

    @property
    def type(self):
        number = self.get("type")
        if number is not None:
            number = int(number)
            return TYPES[number] if number < len(TYPES) else SKIPPABLE.get(number, "UNKNOWN")
        return "PREAMBLE" if self.get("least") else "SEALED"


class Packet:
    def __init__(self, element):
        of = {field.get("name"): field.get("show") for field in element.iter("field")}
        self.stream, self.bytes = int(of["tcp.stream"]), int(of["tcp.len"])
        self.way = (int(of["tcp.srcport"]), int(of["tcp.dstport"]))
        self.again = "tcp.analysis.retransmission" in of or "tcp.analysis.lost_segment" in of
        names = [*of, *(proto.get("name") for proto in element)]
        self.faults = [name for name in names if name == "data" or name.startswith(("_ws.malformed", "_ws.lua"))
                       and name != "_ws.lua.fake"]
        # The protocol's line holds those of its frames, which are of the same name.
        tops = [proto for proto in element if proto.get("name") == "meshkv"]
        self.units = [Unit(line) for top in tops for line in top if line.get("name") == "meshkv"]
        self.defects = [f.get("show") for f in element.iter("field") if f.get("name") == "meshkv.defect"]


def dissect(lab, path):
    words = ["tshark", "-n", "-2", "-X", f"lua_script:{SPEC}/meshkv.lua", "-o", "tcp.try_heuristic_first:TRUE", "-r", path,
             "-Y", "tcp.len > 0", "-T", "pdml"]
    text = lab.run(*words)
    complaints = [line for line in text.stderr.splitlines() if line and "Running as user" not in line]
    assert not complaints, complaints
    return [Packet(element) for element in ElementTree.fromstring(text.stdout)]


# --- golden vectors

def vectors():
    """Section, name, bytes of each line of vectors.txt that is of frames; preambles are the implementation's to judge."""
    section = None
    with open(os.path.join(SPEC, "vectors.txt")) as lines:
        for line in lines:
            line = line.rstrip("\n")
            if line.startswith("# "):
                section = line[2:]
            elif section in ("Frames", "Defects", "Skipped") and line:
                name, _, digits = line.partition(": ")
                yield section, name, bytes.fromhex(digits)


def write_capture(path, streams):
    """Streams: lists of segments from the dialer, behind preambles of both sides. Raw IPv4 packets."""
    packets = []

    def segment(n, out, seq, ack, flags, payload):
        ports = (20000 + n, 6000) if out else (6000, 20000 + n)
        tcp = struct.pack("!HHIIBBHHH", *ports, seq, ack, 5 << 4, flags, 65535, 0, 0) + payload
        addresses = bytes([127, 0, 0, 1, 127, 0, 0, 2]) if out else bytes([127, 0, 0, 2, 127, 0, 0, 1])
        packets.append(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses + tcp)

    for n, segments in enumerate(streams):
        segment(n, True, 0, 0, 2, b"")
        segment(n, False, 0, 1, 18, b"")
        seq = 1
        for payload in [PREAMBLE, *segments]:
            segment(n, True, seq, 1 if seq == 1 else 17, 24, payload)
            if seq == 1:
                segment(n, False, 1, 17, 24, PREAMBLE)
            seq += len(payload)
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 1 << 18, 101))
        for at, packet in enumerate(packets):
            file.write(struct.pack("<IIII", at // 1000000, at % 1000000, len(packet), len(packet)) + packet)


def fields_of(unit):
    parts = []
    for name, show in unit.fields:
        if name not in ("length", "type", "defect"):
            value = "EPOCH" if name == "hlc_time" and show.startswith("Jan  1, 1970 00:00:00.000000000") else show
            value = f"0x{int(value, 16):x}" if value.startswith("0x") else value
            parts.append(f"{name}={value}")
    return " ".join(parts)


def golden(lab):
    lines = list(vectors())
    streams = []
    for _, _, data in lines:
        streams += [[data], [data[at:at + 1] for at in range(len(data))]]
    path = os.path.join(lab.folder, "vectors.pcap")
    write_capture(path, streams)
    units, defects = collections.defaultdict(list), collections.defaultdict(list)
    for packet in dissect(lab, path):
        assert not packet.faults, packet.faults
        units[packet.stream] += [unit for unit in packet.units if unit.type != "PREAMBLE"]
        defects[packet.stream] += packet.defects
    counts = collections.Counter()
    known = dict(EXPECTED)
    for at, (section, name, data) in enumerate(lines):
        for stream in (2 * at, 2 * at + 1):
            found, wrong = units[stream], defects[stream]
            where = f"{name}, stream {stream}"
            if section == "Frames":
                assert not wrong and len(found) == 1, f"{where}: {wrong} {found}"
                assert (found[0].size, found[0].holes) == (len(data), 0), f"{where}: {found[0].holes} bytes in no field"
                assert fields_of(found[0]) == known[name], f"{where}:\n {fields_of(found[0])}\n {known[name]}"
            elif section == "Skipped":
                assert not wrong and [unit.type for unit in found] == ["UNKNOWN"] and found[0].holes == 0, where
            else:
                reason = name.rsplit("(", 1)[1].rstrip(")")
                assert wrong == [reason], f"{where}: {wrong}"
        counts[section] += 1
    assert counts["Frames"] == len(EXPECTED) and counts["Defects"] >= 20 and counts["Skipped"] == 2, counts
    ok(f"golden vectors: {counts['Frames']} frames field by field, {counts['Defects']} defects by their reasons, whole "
       "and byte by byte")


# --- real nodes

def capture(lab, path):
    listener = lab.background("dumpcap", "-q", "-i", "lo", "-B", "64", "-w", path,
                              "-f", f"tcp and not portrange {HTTP}-{HTTP + 9}", stderr=subprocess.PIPE, text=True)
    for line in listener.stderr:
        if line.startswith("File:"):
            return listener
    raise AssertionError("dumpcap did not start")


def end_capture(listener):
    time.sleep(0.5)
    listener.send_signal(signal.SIGINT)
    said = listener.stderr.read()
    assert listener.wait(10) == 0, said
    dropped = re.search(r"dropped on interface '[^']+': \d+/(\d+)", said)
    assert dropped and dropped[1] == "0", said


def whole(packets):
    """Units by stream and direction; every byte that was sent must be in a unit, and in a field of it."""
    ways, sent = collections.defaultdict(list), collections.Counter()
    links = {packet.stream for packet in packets if packet.units}
    for packet in packets:
        if packet.stream in links:
            assert not packet.faults and not packet.defects, (packet.faults, packet.defects)
            assert not packet.again, "a segment twice or missing: nothing can be said about this capture"
            sent[packet.stream, packet.way] += packet.bytes
            ways[packet.stream, packet.way] += packet.units
    for way, units in ways.items():
        assert sum(unit.size for unit in units) == sent[way], f"{way}: bytes that no frame has"
        for unit in units:
            assert unit.holes == 0, f"{unit.title}: {unit.holes} bytes in no field: {unit.fields}"
    return ways


def operations(unit):
    """Kind, key, value, expiry of each operation of an OPS or RECORDS frame."""
    found = []
    for name, show in unit.fields:
        if name == "op":
            found.append([("set", "rm", "clear")[int(show)], "", "", 0])
        elif name in ("key", "value", "expires_ms") and found:
            found[-1][("key", "value", "expires_ms").index(name) + 1] = show
    return [tuple(operation) for operation in found]


def plain(lab):
    # A capture is over before real nodes would compare themselves.
    os.environ["MESHKV_TEST_COMPARE_MS"] = "300"
    path = os.path.join(lab.folder, "plain.pcapng")
    listener = capture(lab, path)
    a = Node(lab, "a", port=HTTP)
    for n in range(300):
        a.ok(f"/set?k=old{n}&v={n}")
    b = Node(lab, "b", [a.url()], port=HTTP + 1)
    # What the log of a no longer needs to tell c, which copies it.
    for n in range(300, 350):
        a.ok(f"/set?k=old{n}&v={n}")
    c = Node(lab, "c", [b.url()], port=HTTP + 2)
    done = collections.defaultdict(list)
    for n in range(120):
        node = (a, b, c)[n % 3]
        ttl = "&ttl=1000" if n % 4 == 0 else ""
        node.ok(f"/set?k=key{n}&v=%F0%9F%98%80{n}{ttl}")
        done[node.name].append(("set", f"key{n}", f"😀{n}", n % 4 == 0))
    for n in range(0, 120, 5):
        c.ok(f"/rm?k=key{n}")
        done["c"].append(("rm", f"key{n}", "", False))
    b.ok("/clear")
    done["b"].append(("clear", "", "", False))
    # A beat, a mark and an acknowledgement of all of it.
    time.sleep(1.5)
    records = {node.name: node.metric("meshkv_repair_entries_total", direction="received") for node in (a, b, c)}
    # Refused as one's own: a node that is told to join itself.
    d = Node(lab, "d", [f"http://127.0.0.1:{HTTP + 3}"], port=HTTP + 3)
    for node in (d, c, b, a):
        node.stop()
    end_capture(listener)
    ways = whole(dissect(lab, path))
    seen = collections.Counter(unit.type for units in ways.values() for unit in units)
    missing = [name for name in [*TYPES, *SKIPPABLE.values()] if not seen[name]]
    assert not missing, f"never seen: {missing} ({seen})"

    # By the links' own words: who dialed whom, with which worker.
    links = {}
    for (stream, way), units in ways.items():
        hello = next((unit for unit in units if unit.type == "HELLO"), None)
        back = ways.get((stream, way[::-1]), [])
        welcome = next((unit for unit in back if unit.type == "WELCOME"), None)
        if hello and welcome:
            pair = (hello.get("name"), welcome.get("name"), int(hello.get("worker")))
            links.setdefault(pair, []).append((int(welcome.get("applied")), units, back))
    pairs = [(x, y, w) for x in "abc" for y in "abc" if x != y for w in (0, 1)]
    assert set(pairs) <= set(links), f"links: {sorted(links)}"
    for x in "abc":
        for y in "abc":
            if x == y:
                continue
            told = collections.Counter()
            # On a busy machine a link may break off before it is of use, and another takes its place.
            for worker, link in [(worker, link) for worker in (0, 1) for link in links[x, y, worker]]:
                applied, units, back = link
                is_last = link is links[x, y, worker][-1]
                head, said = applied, 0
                for unit in units:
                    if unit.type == "RESTART":
                        head = int(unit.get("base"))
                    elif unit.type == "OPS":
                        assert int(unit.get("first")) == head + 1, f"{x} to {y}: {unit.fields[:4]} behind {head}"
                        found = operations(unit)
                        assert len(found) == int(unit.get("count"))
                        head += len(found)
                        told.update((kind, key, value, expires != 0) for kind, key, value, expires in found)
                    elif unit.type == "MARK":
                        seq = int(unit.get("seq"))
                        assert said <= seq <= head, f"{x} to {y}: a mark at {seq}, behind {said}, of {head} ({applied})"
                        said = seq
                    elif unit.type == "BEAT" and head:
                        assert x in unit.all("name") and len(unit.all("name")) <= 4, unit.all("name")
                acks = [int(unit.get("applied")) for unit in back if unit.type == "ACK"]
                assert said == head or not is_last, f"{x} to {y}: {said} {head}"
                assert max(acks, default=0) <= head, f"{x} to {y}: {head} {acks[-3:]}"
                echoes = [unit for unit in back if unit.type == "ECHO"]
                assert bool(echoes) == (worker == 0) or not is_last, f"{x} to {y} worker {worker}: {len(echoes)} echoes"
            told = collections.Counter({op: n for op, n in told.items() if not op[1].startswith("old")})
            assert told == collections.Counter(done[x]), f"{x} told {y}: {told - collections.Counter(done[x])}"
    # What the joiners' pulls moved, by their own count.
    moved = collections.Counter()
    for (x, _, _), of_pair in links.items():
        for unit in (unit for _, _, back in of_pair for unit in back):
            if unit.type == "RECORDS":
                moved[x] += len(operations(unit))
    assert records["b"] >= 300 and all(moved[name] >= records[name] for name in "abc"), (moved, records)
    refused = {reason for units in ways.values() for unit in units for reason in unit.all("reason")}
    assert "5" in refused, f"reasons seen: {refused}"
    ok(f"three nodes: {sum(seen.values())} preambles and frames of all {len(TYPES) - 1 + len(SKIPPABLE)} types, every byte in "
       f"a field, operations as they were asked for: {dict(seen)}")


def encrypted(lab):
    path, secret = os.path.join(lab.folder, "sealed.pcapng"), os.path.join(lab.folder, "secret")
    with open(secret, "w") as file:
        file.write("0123456789abcdef0123456789abcdef0123456789a=")
    listener = capture(lab, path)
    a = Node(lab, "a", port=HTTP, more=["--secret-file", secret])
    b = Node(lab, "b", [a.url()], port=HTTP + 1, more=["--secret-file", secret])
    for n in range(50):
        a.ok(f"/set?k=hidden{n}&v={n}")
    for node in (b, a):
        node.stop()
    end_capture(listener)
    with open(path, "rb") as file:
        assert b"hidden" not in file.read(), "a key in the clear"
    ways = whole(dissect(lab, path))
    seen = collections.Counter()
    for units in ways.values():
        if len(units) > 1:
            assert (units[0].type, units[0].get("secret"), units[1].get("handshake") is not None) == ("PREAMBLE", "1", True)
        for unit in units[2:]:
            assert unit.get("sealed") and [name for name, _ in unit.fields] == ["noise_length", "sealed"], unit.fields
        seen.update("handshake" if unit.get("handshake") else unit.type for unit in units)
    assert seen["handshake"] >= 8 and seen["SEALED"] > 50 and set(seen) == {"PREAMBLE", "handshake", "SEALED"}, seen
    ok(f"a mesh with a secret is shown as sealed: {dict(seen)}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    inside = alone()
    lab = Lab(sys.argv[1])
    try:
        golden(lab)
        if inside:
            plain(lab)
            lab.end_processes()
            encrypted(lab)
    finally:
        lab.close()
    print(f"dissector: {passed} passed, 0 failed, {0 if inside else 2} skipped")


main()
