"""Each fixture of pytest-django. test_testkit_database.py runs them in separate processes."""

import pytest

from notes.models import Note
from notes.sockets import Coroutines, Plain, texts
from notes.tests import KINDS, drive, drive_plainly

databases = pytest.mark.parametrize(
    "database",
    [
        pytest.param("rolled back", marks=pytest.mark.django_db),
        pytest.param("flushed", marks=pytest.mark.django_db(transaction=True)),
    ],
)


@pytest.fixture
def note(database):
    assert texts() == [], "the test before was not rolled back"
    return Note.objects.create(text="from the test")


@databases
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_client(note, kind):
    drive_plainly(kind)


@databases
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.asyncio
async def test_pytest_asyncio(note, kind):
    await drive(kind)


@databases
@pytest.mark.asyncio
async def test_with_the_fixture_coroutines_of_the_test_see_the_rows_too(
    note, sockets_broker, socket_client
):
    assert await Note.objects.acount() == 1
    await Note.objects.acreate(text="from a coroutine")
    client = await socket_client(Plain.as_asgi)
    assert await client.receive_json() == ["from the test", "from a coroutine"]


@databases
def test_nothing_stays(note):
    assert texts() == ["from the test"]


@pytest.mark.asyncio
async def test_without_a_database_the_database_stays_forbidden(sockets_broker, socket_client):
    client = await socket_client(Coroutines.as_asgi)
    assert await client.receive_close() == 1011
