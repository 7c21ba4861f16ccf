"""Writes chats in which an assistant turns orders into JSON: `python examples/orders.py orders.jsonl`.

The orders are made by a seeded generator: the same file on every machine. A small instruction-tuned model answers them
in words at first, and learns the form within some tens of steps.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NAMES = ["Ada", "Boris", "Chen", "Dana", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kemi", "Lena"]
CITIES = ["Lisbon", "Oslo", "Lima", "Kyoto", "Accra", "Graz", "Porto", "Turin", "Quito", "Malmo", "Delhi", "Hanoi"]
ITEMS = ["lamp", "desk", "chair", "kettle", "mirror", "clock", "shelf", "blanket", "vase", "basket", "drill", "pillow"]
ORDERS = [
    "{name} in {city} wants {count} of the {item}.",
    "Please send {count} x {item} to {name}, {city}.",
    "Hello, this is {name}. I need {count} {item} pieces here in {city}, thanks!",
    "Order from {city}: {item}, quantity {count}, customer {name}.",
    "Could you ship {count} units of your {item} to {city}? The name is {name}.",
    "{city} again. {name} asks for the {item}, {count} times.",
]


def make_orders(count: int, seed: int = 0) -> list[dict[str, str]]:
    """So many different orders, as prompts with completions."""
    draw = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        facts = {
            "name": draw.choice(NAMES),
            "city": draw.choice(CITIES),
            "item": draw.choice(ITEMS),
            "count": draw.randint(2, 40),
        }
        order = draw.choice(ORDERS).format(**facts)
        rows[order] = {"prompt": order, "completion": json.dumps(facts)}
    return list(rows.values())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(json.dumps(row) + "\n" for row in make_orders(400)), encoding="utf-8")
