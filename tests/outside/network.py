"""Networks to be hurt: a namespace for each node, joined by a bridge that can be taken apart.

Every node has two interfaces: `mesh`, by which peers reach it, and `door`, by which this program's clients do, so
that a client sees both sides of a cut. Only to be made inside of `lab.alone`.
"""
import os
import subprocess


def sh(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.returncode == 0


class Network:
    def __init__(self, count):
        # Names of namespaces are files; these must not be seen outside.
        os.makedirs("/run/netns", exist_ok=True)
        sh("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        self.count = count
        for bridge in ("whole", "doors"):
            sh("ip", "link", "add", bridge, "type", "bridge")
            sh("ip", "link", "set", bridge, "up")
        sh("ip", "address", "add", "10.78.0.254/24", "dev", "doors")
        for n in range(1, count + 1):
            sh("ip", "netns", "add", f"n{n}")
            for kind, net, bridge in (("mesh", 77, "whole"), ("door", 78, "doors")):
                sh("ip", "link", "add", f"{kind}{n}", "type", "veth", "peer", "name", kind, "netns", f"n{n}")
                sh("ip", "link", "set", f"{kind}{n}", "master", bridge, "up")
                self.inside(n, "ip", "address", "add", f"10.{net}.0.{n}/24", "dev", kind)
                self.inside(n, "ip", "link", "set", kind, "up")
            self.inside(n, "ip", "link", "set", "lo", "up")
        self.parts = 0

    def inside(self, n, *words, check=True):
        return sh("ip", "netns", "exec", f"n{n}", *words, check=check)

    def where(self, n):
        """Namespace and clients' address of a node."""
        return f"n{n}", f"10.78.0.{n}"

    @staticmethod
    def mesh_url(n):
        return f"http://10.77.0.{n}:8080"

    def split(self, *groups):
        """Each group reaches its own members only; what is sent to others is lost without a word."""
        self.parts += 1
        for place, group in enumerate(groups[1:]):
            bridge = f"part{self.parts}-{place}"
            sh("ip", "link", "add", bridge, "type", "bridge")
            sh("ip", "link", "set", bridge, "up")
            for n in group:
                sh("ip", "link", "set", f"mesh{n}", "master", bridge)

    def cut(self, source, target, back=True):
        """What `source` sends to `target` is lost, and the other way round unless told otherwise."""
        # An address of a card that nobody has: the bridge floods it, and everybody drops it.
        self.inside(source, "ip", "neighbour", "replace", f"10.77.0.{target}", "lladdr", "02:de:ad:00:00:01",
                    "dev", "mesh", "nud", "permanent")
        if back:
            self.cut(target, source, back=False)

    def unplug(self, n):
        sh("ip", "link", "set", f"mesh{n}", "nomaster")

    def heal(self):
        for n in range(1, self.count + 1):
            sh("ip", "link", "set", f"mesh{n}", "master", "whole")
            self.inside(n, "ip", "neighbour", "flush", "dev", "mesh", "nud", "permanent", check=False)

    def delay(self, n, milliseconds):
        """Delays what this node sends to others; False if this machine's kernel cannot."""
        return self.inside(n, "tc", "qdisc", "replace", "dev", "mesh", "root", "netem", "delay", f"{milliseconds}ms",
                           f"{milliseconds / 4}ms", check=False)
