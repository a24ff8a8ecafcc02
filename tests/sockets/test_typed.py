"""A handler gets its declared type, and a client learns why a message is invalid."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

from django_sockets import ConfigurationError
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient
from django_sockets.typed import on

URL = "memory://typed"


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Invalid frames of a client are no errors of the application."""
    yield
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.WARNING]


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclasses.dataclass
class PointClass:
    x: int
    y: int = 0


class PointDict(TypedDict):
    x: int


class Move(msgspec.Struct, tag="move", tag_field="type"):
    x: Annotated[int, msgspec.Meta(ge=0)]


class Stop(msgspec.Struct, tag="stop", tag_field="type"):
    pass


class Typed(BaseSocketServer):
    """Answers with what it got."""

    config = URL
    message_type = Point

    async def receive(self, data: Any) -> None:
        await self.async_send(repr(data))


class TypedClass(Typed):
    message_type = PointClass


class TypedDictionary(Typed):
    message_type = PointDict


class TypedUnion(Typed):
    message_type = Move | Stop


@pytest.mark.parametrize(
    ("kind", "frame", "got"),
    [
        (Typed, '{"x": 1, "unknown": null}', "Point(x=1, y=0)"),
        (TypedClass, '{"x": 1}', "PointClass(x=1, y=0)"),
        (TypedDictionary, '{"x": 1}', "{'x': 1}"),
        (TypedUnion, '{"type": "move", "x": 1}', "Move(x=1)"),
        (TypedUnion, '{"type": "stop"}', "Stop()"),
    ],
)
async def test_receive_gets_what_the_class_declares(kind: Any, frame: str, got: str) -> None:
    async with SocketClient(kind.as_asgi) as client:
        await client.send_text(frame)
        assert await client.receive_json() == got
        await client.send_bytes(frame.encode())
        assert await client.receive_json() == got


@pytest.mark.parametrize("kind", [Typed, TypedClass, TypedDictionary, TypedUnion])
@pytest.mark.parametrize("answering", [False, True])
async def test_a_frame_that_does_not_fit_is_answered_or_closes_with_1007(
    kind: Any, answering: bool
) -> None:
    class Kind(kind):  # type: ignore[misc]
        answer_invalid = answering

    async with SocketClient(Kind.as_asgi) as client:
        await client.send_text('{"type": "move", "x": "far"}')
        if answering:
            message = "Expected `int`, got `str` - at `$.x`"
            assert await client.receive_json() == {
                "error": {"type": "invalid_message", "message": message}
            }
            await client.send_text('{"type": "move", "x": 5}')
            assert "5" in await client.receive_json()
        else:
            assert await client.receive_close() == 1007


DEEP = "[" * 100_000 + "]" * 100_000
MALFORMED = [
    '{"type": "said", "x": 1',
    '{"type": "said", "x": 1} {}',
    '{"type": "said", "x": 1, "y": NaN}',
    '{"type": "said", "x": 1, "more": NaN}',
    '{"type": "said", "x": 1, "more": [-Infinity]}',
    f'{{"type": "said", "x": 1, "more": {DEEP}}}',
    f'{{"type": "said", "x": {DEEP}}}',
    DEEP,
    b'{"type": "said", "x": 1, "more": "\xff"}',
    b"\xff\xfe\xfd",
    "",
    "NaN",
]


class Plain(BaseSocketServer):
    """The reference: typed classes must refuse what this class refuses."""

    config = URL

    async def receive(self, data: Any) -> None:
        await self.async_send("taken")


class Takes(Plain):
    @on("said")
    async def said(self, message: Point) -> None:
        await self.async_send("taken")


class TakesPlain(Plain):
    @on("said")
    async def said(self, message):  # type: ignore[no-untyped-def]
        await self.async_send("taken")


class TakesNothing(Plain):
    @on("said")
    async def said(self) -> None:
        await self.async_send("taken")


@pytest.mark.parametrize("kind", [Plain, Typed, Takes, TakesPlain, TakesNothing])
@pytest.mark.parametrize("frame", MALFORMED, ids=lambda frame: repr(frame[:40]))
async def test_what_is_not_json_is_refused_in_every_part_of_a_frame(
    kind: Any, frame: str | bytes
) -> None:
    async with SocketClient(kind.as_asgi) as client:
        await (client.send_text(frame) if isinstance(frame, str) else client.send_bytes(frame))
        assert await client.receive_close() == 1007


async def test_of_equal_keys_the_last_one_counts_for_type_and_content_alike() -> None:
    class Choosing(Plain):
        @on("a")
        async def a(self, message: Point) -> None:
            await self.async_send(["a", message.x])

        @on("b")
        async def b(self, message: dict[str, Any]) -> None:
            await self.async_send(["b", message["x"], message["type"]])

        @on("c")
        async def c(self, message) -> None:  # type: ignore[no-untyped-def]
            await self.async_send(["c", message["x"], message["type"]])

    async with SocketClient(Choosing.as_asgi) as client:
        for last, answer in [("a", ["a", 2]), ("b", ["b", 2, "b"]), ("c", ["c", 2, "c"])]:
            await client.send_text(f'{{"type": "a", "x": 1, "type": "{last}", "x": 2}}')
            assert await client.receive_json() == answer


async def test_a_frame_of_a_mebibyte_is_taken_and_a_larger_one_closes_with_1009() -> None:
    class Long(Takes):
        @on("said")
        async def said(self, message: dict[str, str]) -> None:  # type: ignore[override]
            await self.async_send(len(message["text"]))

    frame = '{"type": "said", "text": "%s"}'
    room = 1024 * 1024 - len(frame % "")
    async with SocketClient(Long.as_asgi) as client:
        await client.send_text(frame % ("x" * room))
        assert await client.receive_json() == room
        await client.send_text(frame % ("x" * (room + 1)))
        assert await client.receive_close() == 1009


class Chat(BaseSocketServer):
    config = URL
    answer_invalid = True

    @on("move")
    async def moved(self, message: Move) -> None:
        await self.async_send(["moved", message.x])

    @on("point", "dot")
    def pointed(self, message: Point) -> None:
        self.send(["pointed", message.x])

    @on("ranged")
    async def ranged(self, message: Annotated[dict[str, Any], msgspec.Meta(max_length=2)]) -> None:
        await self.async_send(["ranged", message])

    @on("ping")
    def ping(self) -> None:
        self.send("pong")

    @on("plain")
    async def plain(self, message):  # type: ignore[no-untyped-def]
        await self.async_send(message)


class ChatWithReceive(Chat):
    def receive(self, data: Any) -> None:
        self.send(["received", data])


class ChatWithTypedReceive(Chat):
    message_type = Point

    def receive(self, data: Any) -> None:
        self.send(["received", data.x])


async def test_each_type_goes_to_its_method_with_what_it_declares() -> None:
    for kind in (Chat, ChatWithReceive, ChatWithTypedReceive):
        async with SocketClient(kind.as_asgi) as client:
            for frame, answer in [
                ({"type": "move", "x": 1}, ["moved", 1]),
                ({"type": "point", "x": 2}, ["pointed", 2]),
                ({"type": "dot", "x": 3}, ["pointed", 3]),
                ({"type": "ranged", "a": 1}, ["ranged", {"type": "ranged", "a": 1}]),
                ({"type": "ping", "more": 1}, "pong"),
                ({"type": "plain", "a": [None]}, {"type": "plain", "a": [None]}),
            ]:
                await client.send_json(frame)
                assert await client.receive_json() == answer
            for frame, where in [
                ({"type": "move", "x": -1}, "$.x"),
                ({"type": "point", "x": None}, "$.x"),
                ({"type": "point"}, "`x`"),
                ({"type": "ranged", "a": 1, "b": 2}, "length <= 2"),
            ]:
                await client.send_json(frame)
                error = (await client.receive_json())["error"]
                assert (error["type"], where in error["message"]) == ("invalid_message", True)


OTHERS = [{"type": "other", "x": 1}, {"x": 1}, {"type": 7, "x": 1}, {"type": None, "x": 1}]


@pytest.mark.parametrize("other", [*OTHERS, [], "move", 1, None, {"type": "receive", "x": 1}])
async def test_what_no_method_takes_goes_to_receive_if_there_is_one(other: Any) -> None:
    async with SocketClient(Chat.as_asgi) as client:
        await client.send_json(other)
        error = (await client.receive_json())["error"]
        assert error["type"] == "invalid_message"
        expected = "type" if isinstance(other, dict) else "Expected `object`"
        assert expected in error["message"]
    async with SocketClient(ChatWithReceive.as_asgi) as client:
        await client.send_json(other)
        assert await client.receive_json() == ["received", other]
    async with SocketClient(ChatWithTypedReceive.as_asgi) as client:
        await client.send_json(other)
        answer = await client.receive_json()
        if isinstance(other, dict):
            assert answer == ["received", 1]
        else:
            assert "Expected `object`" in answer["error"]["message"]


async def test_the_answer_does_not_send_a_large_message_back() -> None:
    async with SocketClient(Chat.as_asgi) as client:
        await client.send_json({"type": "x" * 100_000})
        answer = await client.receive()
        assert len(answer) < 1000
        assert "$.type" in json.loads(answer)["error"]["message"]


async def test_a_decoder_of_the_class_comes_first_and_its_data_is_validated() -> None:
    class Packed(Chat):
        ws_decoder = staticmethod(msgspec.msgpack.decode)

    class PackedPoint(Typed):
        ws_decoder = staticmethod(msgspec.msgpack.decode)
        answer_invalid = True

    pack = msgspec.msgpack.encode
    async with SocketClient(Packed.as_asgi) as client, SocketClient(PackedPoint.as_asgi) as typed:
        await client.send_bytes(pack({"type": "move", "x": 4}))
        assert await client.receive_json() == ["moved", 4]
        await client.send_bytes(pack({"type": "plain", "x": 4}))
        assert await client.receive_json() == {"type": "plain", "x": 4}
        await client.send_bytes(pack({"type": "ping"}))
        assert await client.receive_json() == "pong"
        for wrong in ({"type": "move", "x": "4"}, {"type": "no"}, [1]):
            await client.send_bytes(pack(wrong))
            assert "error" in await client.receive_json()
        await typed.send_bytes(pack({"x": 5}))
        assert await typed.receive_json() == "Point(x=5, y=0)"
        await typed.send_bytes(pack({"x": "5"}))
        assert "`$.x`" in (await typed.receive_json())["error"]["message"]


async def test_what_a_decoder_of_the_class_says_is_not_shown_to_the_client() -> None:
    class Leaky(Typed):
        answer_invalid = True

        def configure(self) -> None:
            self.ws_decoder = self.decode

        def decode(self, frame: Any) -> Any:
            raise RuntimeError("the key is hunter2")

    async with SocketClient(Leaky.as_asgi) as client:
        await client.send_text("{}")
        assert (await client.receive_json())["error"]["message"] == (
            "the message could not be decoded"
        )


async def test_subclasses_inherit_override_replace_and_remove_what_they_take() -> None:
    class Child(Chat):
        def pointed(self, message: PointClass) -> None:  # type: ignore[override]
            self.send(["child", type(message).__name__])

        @on("go")
        async def moved(self, message: Point) -> None:  # type: ignore[override]
            await self.async_send(["gone", message.x])

        ping = None  # type: ignore[assignment]

    async with SocketClient(Child.as_asgi) as client:
        for kind, answer in [
            ("point", ["child", "PointClass"]),
            ("dot", ["child", "PointClass"]),
            ("go", ["gone", 1]),
        ]:
            await client.send_json({"type": kind, "x": 1})
            assert await client.receive_json() == answer
        for kind in ("move", "ping"):
            await client.send_json({"type": kind, "x": 1})
            assert "error" in await client.receive_json()
    async with SocketClient(Chat.as_asgi) as client:
        await client.send_json({"type": "point", "x": 1})
        assert await client.receive_json() == ["pointed", 1], "the subclass changed its base"


def test_two_methods_for_one_type_are_an_error_of_the_class() -> None:
    with pytest.raises(ConfigurationError, match=r"Twice\.a and Twice\.b both .* 'same'"):

        class Twice(BaseSocketServer):
            @on("same")
            def a(self) -> None: ...

            @on("same")
            def b(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Child\.ping and Child\.other"):

        class Child(Chat):
            @on("ping")
            def other(self) -> None: ...

    for wrong in ((), (7,), (lambda: None,)):
        with pytest.raises(ConfigurationError, match="type of the messages"):
            on(*wrong)  # type: ignore[arg-type]


def test_what_cannot_work_is_said_before_the_first_connection() -> None:
    class Local(msgspec.Struct):
        x: int

    class Unresolved(BaseSocketServer):
        @on("a")
        def a(self, message: Local) -> None: ...

    class Greedy(BaseSocketServer):
        @on("a")
        def a(self, message: Point, more: int) -> None: ...

    class Mixed(BaseSocketServer):
        message_type = Point | PointClass

    for kind, problem in [
        (Unresolved, r"Unresolved\.a cannot be resolved .*'Local'"),
        (Greedy, r"Greedy\.a takes several"),
        (Mixed, r"Mixed\.message_type: msgspec cannot decode"),
    ]:
        with pytest.raises(ConfigurationError, match=problem):
            kind({}, config=URL)


async def test_an_error_in_a_method_is_the_applications_and_not_the_clients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Plain):
        @on("said")
        async def said(self, message: Point) -> None:
            await self.async_send({"point": msgspec.convert("no number", int)})

    async with SocketClient(Fails.as_asgi) as client:
        await client.send_json({"type": "said", "x": 1})
        assert await client.receive_close() == 1011
    assert "Expected `int`" in caplog.text
    caplog.clear()


class Answers(BaseSocketServer):
    config = URL
    answer_invalid = True

    @on("said")
    async def said(self, message: Point) -> None:
        await self.async_send("taken")


class AnswersByItsDecoder(Answers):
    ws_decoder = json.loads


IDS: list[tuple[str, dict[str, Any]]] = [
    ('{"type": "said", "x": "far", "id": 7}', {"id": 7}),
    ('{"type": "said", "id": "a-1"}', {"id": "a-1"}),
    ('{"type": "unheard of", "id": 0}', {"id": 0}),
    ('{"id": 1.5, "x": 1}', {"id": 1.5}),
    ('{"type": "said", "x": 1, "more": NaN, "id": 2}', {"id": 2}),
    ('{"type": "said", "x": 1e999, "id": 3}', {"id": 3}),
    ('{"type": "said", "id": null}', {}),
    ('{"type": "said", "id": true}', {}),
    ('{"type": "said", "id": [1]}', {}),
    ('{"type": "said", "id": NaN}', {}),
    (f'{{"type": "said", "id": "{"x" * 501}"}}', {}),
    ('{"type": "said"}', {}),
    ('["id", 7]', {}),
    ('{"type": "said", "id": 7', {}),
    (f'{{"id": 7, "deep": {DEEP}}}', {}),
]


@pytest.mark.parametrize("kind", [Answers, AnswersByItsDecoder])
@pytest.mark.parametrize(("frame", "identified"), IDS, ids=[row[0][:40] for row in IDS])
async def test_the_answer_to_an_invalid_message_has_its_id(
    kind: Any, frame: str, identified: dict[str, Any]
) -> None:
    if kind is AnswersByItsDecoder and "NaN," in frame:
        pytest.skip("json.loads takes NaN")
    async with SocketClient(kind.as_asgi) as client:
        await client.send_text(frame)
        answer = await client.receive_json()
        assert answer.pop("error")["type"] == "invalid_message"
        assert answer == identified
        await client.send_text('{"no": "id"}')
        assert "id" not in await client.receive_json(), "the id of the message before"


class Declares(Plain):
    message_type = Point


class Raises(Plain):
    @staticmethod
    def ws_decoder(frame: Any) -> Any:  # type: ignore[override]
        raise LookupError(frame)


FORGED = "\r\nERROR django_sockets: forged\x1b[2J"


@pytest.mark.parametrize(
    ("kind", "frame", "said"),
    [
        (Plain, '{"a": ', "JSONDecodeError: 'Expecting value"),
        (Plain, b"\xff", "UnicodeDecodeError"),
        (Declares, '{"x": "far"}', "ValidationError: 'Expected `int`, got `str` - at `$.x`'"),
        (Answers, json.dumps({"type": FORGED}), "Invalid value"),
        (Raises, FORGED + "x" * 10_000, "LookupError"),
    ],
)
async def test_a_frame_that_cannot_be_decoded_is_logged_once_per_interval(
    kind: type[BaseSocketServer], frame: str | bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Why a client was closed with 1007 is in the log, in one line that no client can forge."""
    caplog.set_level(logging.INFO, "django_sockets")
    kind = type(f"Logged{abs(hash(frame))}", (kind,), {})  # Each name has its own interval.
    for _ in range(3):
        async with SocketClient(kind.as_asgi) as client:
            if isinstance(frame, str):
                await client.send_text(frame)
            else:
                await client.send_bytes(frame)
            if not kind.answer_invalid:
                assert await client.receive_close() == 1007
    (line,) = [r.getMessage() for r in caplog.records if "could not be decoded" in r.getMessage()]
    assert line.startswith(f"{kind.__name__}: a frame of the client could not be decoded: ")
    assert said in line
    assert line.isprintable()
    assert len(line) < 500
