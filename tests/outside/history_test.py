#!/usr/bin/env python3
"""The judge is judged: small histories, of which it is known whether they can have been."""
from history import Check, History, Op

A, B = ("a", 1), ("b", 1)


def op(kind, value, node, begun, ended, status=200, wanted="all", after=None):
    """One request on the key k. A read's `value` is what it was shown."""
    made = Op(kind, None if kind == "clear" else "k", value if kind == "set" else None, node, wanted, after)
    made.begun, made.ended, made.status = begun, ended, status
    made.result = f'"{value}"' if kind == "get" and value else "{}"
    return made


def put(value, node, begun, **more):
    return op("set", value, node, begun, begun + 0.5, **more)


def gone(node, begun, kind="rm", **more):
    return op(kind, None, node, begun, begun + 0.5, **more)


def read(value, node, begun, **more):
    return op("get", value, node, begun, begun + 0.5, 200 if value else 404, **more)


FIRST = put("1", A, 1)
CASES = [
    # Can it have been, what was asked, what is there at the end, how it is to be judged.
    (True, [put("1", A, 1), put("2", A, 2), read("2", A, 3)], "2", {}),
    (True, [put("1", A, 1), op("set", "2", B, 1, 2), read("2", A, 3), read("2", B, 4)], "2", {}),
    (True, [put("1", A, 1), gone(B, 1), read(None, A, 3)], None, {}),
    (True, [put("1", A, 1), op("get", "1", A, 2, 5), put("2", A, 3), read("2", A, 4)], "2", {}),
    (True, [put("1", A, 1, wanted="local")], None, {"lost": [A], "safe": ("all",)}),
    (True, [put("1", A, 1), op("set", "2", A, 2, float("inf"), 0)], "2", {}),
    (True, [put("1", A, 1), op("set", "2", A, 2, float("inf"), 0)], "1", {}),
    (False, [put("1", A, 1), read("7", A, 3)], "1", {}),
    (False, [read("1", A, 0), put("1", A, 1)], "1", {}),
    (False, [put("1", A, 1), put("2", A, 2), read("1", A, 3)], "2", {}),
    (False, [put("1", A, 1), read("1", B, 2), put("2", B, 3), read("1", B, 4)], "2", {}),
    (False, [put("1", A, 1), read("1", B, 2), put("2", B, 3), read("2", A, 4), read("1", A, 5)], "2", {}),
    (False, [put("1", A, 1), read(None, A, 2)], "1", {}),
    (False, [put("1", A, 1), gone(A, 2), read("1", A, 3)], None, {}),
    (False, [put("1", A, 1), gone(A, 2)], "1", {}),
    (False, [put("1", A, 1), gone(A, 2, kind="clear")], "1", {}),
    (False, [put("1", A, 1), read("1", B, 2), gone(B, 3, kind="clear")], "1", {}),
    (False, [put("1", A, 1), put("2", A, 2)], "1", {}),
    (False, [put("1", A, 1), read("1", B, 2), put("2", B, 3), read("2", A, 4), put("3", A, 5)], "1", {}),
    (False, [put("1", A, 1)], None, {}),
    (False, [put("1", A, 1)], None, {"lost": [A]}),
    (False, [put("1", A, 1, wanted="local")], None, {}),
    (False, [put("1", A, 1)], "7", {}),
    (False, [FIRST, read(None, B, 3, after=FIRST)], "1", {}),
    (False, [put("1", None, 1), put("2", None, 2), read("1", None, 3)], "2", {"is_whole": True}),
    (True, [put("1", None, 1), put("2", None, 2), read("2", None, 3)], "2", {"is_whole": True}),
]


def main():
    for at, (can_be, ops, final, more) in enumerate(CASES):
        history = History()
        history.ops = ops
        faults = Check(history, final={"k": final} if final else {}, **more).faults
        assert (not faults) == can_be, f"case {at}, {ops}: {faults}"
    print(f"history: {len(CASES)} passed, 0 failed")


main()
