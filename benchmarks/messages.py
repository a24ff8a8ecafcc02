"""Messages like those of real applications: chat messages and orders as JSON.

The generator has a seed, so every run and every peer gets the same messages. Words, names and ids
vary as they do in an application, because they decide how well a message compresses.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from typing import Any

Maker = Callable[[random.Random, int], dict[str, Any]]
"""Makes a message with a number of sentences or lines."""

SEED = 17
WORDS = (
    "the order is late again can somebody check whether courier has left depot we promised "
    "delivery before noon customer called twice and wants to know what happened I will ask them "
    "thanks that helps a lot please update ticket when you hear more about it in meantime refund "
    "shipping costs because they have been with us for years sounds good let me see if stock "
    "arrived yesterday invoice shows wrong address could someone correct this today meeting moved "
    "to friday afternoon nobody told me yes no maybe tomorrow sure great work everyone new release "
    "looks fine on staging but login page still flickers safari any idea why would happen only here"
).split()
NAMES = (
    "Amara Bo Chloé Dmitri Elif Farid Grace Hiro Inês Jonas Kofi Léa Milan Noor Oskar Priya".split()
)
CITIES = ("Lisbon", "Zürich", "Nairobi", "Osaka", "Montréal", "Gdańsk", "Quito", "Leeds")
ITEMS = (
    "Desk lamp, brass",
    "USB-C cable 2 m",
    "Notebook A5, dotted",
    "Tea kettle 1.2 l",
    "Bike light",
)
PART_BYTES = 80
"""About the length of a sentence or of a line of an order."""
STATES = ("accepted", "packed", "shipped", "delivered", "returned")


def texts(count: int, size_bytes: int = 1000) -> list[str]:
    """Chat messages and orders in turn, each of about `size_bytes`, with `json.dumps`."""
    generator = random.Random(SEED)
    makers = (_chat_message, _order)
    return [_of_size(makers[n % 2], generator, size_bytes) for n in range(count)]


def _of_size(maker: Maker, generator: random.Random, size_bytes: int) -> str:
    """The JSON text with the smallest number of parts that is long enough."""
    parts = 1
    text = json.dumps(maker(generator, parts))
    while len(text) < size_bytes:
        parts += 1 + (size_bytes - len(text)) // (2 * PART_BYTES)
        text = json.dumps(maker(generator, parts))
    return text


def _person(generator: random.Random) -> dict[str, Any]:
    number = generator.randrange(10_000, 99_999)
    return {
        "id": number,
        "name": generator.choice(NAMES),
        "avatar": f"https://cdn.example.com/avatars/{number}/{generator.getrandbits(64):016x}.webp",
        "online": generator.random() < 0.7,
    }


def _sentence(generator: random.Random) -> str:
    words = generator.choices(WORDS, k=generator.randrange(6, 18))
    return " ".join(words).capitalize() + "."


def _moment(generator: random.Random) -> str:
    clock = ":".join(f"{generator.randrange(limit):02}" for limit in (24, 60, 60))
    return f"2026-11-{generator.randrange(1, 31):02}T{clock}.{generator.randrange(1_000_000):06}Z"


def _id(generator: random.Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


def _chat_message(generator: random.Random, sentences: int) -> dict[str, Any]:
    return {
        "type": "chat.message",
        "id": _id(generator),
        "room": f"team-{generator.randrange(400)}",
        "sender": _person(generator),
        "text": " ".join(_sentence(generator) for _ in range(sentences)),
        "mentions": [_person(generator)["id"] for _ in range(generator.randrange(3))],
        "reply_to": _id(generator) if generator.random() < 0.3 else None,
        "created_at": _moment(generator),
        "edited": False,
    }


def _order(generator: random.Random, lines: int) -> dict[str, Any]:
    return {
        "type": "order.updated",
        "id": _id(generator),
        "state": generator.choice(STATES),
        "customer": _person(generator),
        "address": {
            "street": f"{generator.choice(CITIES)} Road {generator.randrange(1, 200)}",
            "city": generator.choice(CITIES),
            "postcode": f"{generator.randrange(1000, 9999)}",
        },
        "lines": [
            {
                "sku": f"{generator.choice('ABCDEF')}{generator.randrange(10_000, 99_999)}",
                "title": generator.choice(ITEMS),
                "quantity": generator.randrange(1, 5),
                "price": f"{generator.randrange(100, 20_000) / 100:.2f}",
            }
            for _ in range(lines)
        ],
        "updated_at": _moment(generator),
        "note": _sentence(generator),
    }
