"""A test of a logout is quick, although its transaction is never committed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "settings.py": """
SECRET_KEY = "for this test"
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "desk",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "desk.urls"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "desk", "ATOMIC_REQUESTS": True}
}
""",
    "pytest.ini": """
[pytest]
python_files = tests.py
DJANGO_SETTINGS_MODULE = settings
filterwarnings = error
""",
    "desk/__init__.py": "",
    "desk/urls.py": """
from django.contrib.auth import logout
from django.http import HttpResponse
from django.urls import path

def leave(request):
    logout(request)
    return HttpResponse()

urlpatterns = [path("leave/", leave)]
""",
    "desk/tests.py": """
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.db import transaction
from django_sockets.middleware import secure
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClosed
from django_sockets.testing.cases import SocketTestCase

class Desk(BaseSocketServer):
    def connect(self):
        self.send(self.scope["user"].username)

HOUR = 3600
app = secure(Desk.as_asgi, require_user=True, session_check_seconds=HOUR)

class Logins(SocketTestCase):
    def setUp(self):
        users = get_user_model().objects
        self.ann = users.create_user("ann", password="first")
        self.bob = users.create_user("bob", password="first")
        bobs = self.client_class()
        bobs.force_login(self.bob)
        key = bobs.session.session_key
        self.other = self.socket(app, headers={"cookie": f"sessionid={key}"})
        self.client.force_login(self.ann)
        self.desk = self.socket(app)
        for socket, name in (self.desk, "ann"), (self.other, "bob"):
            self.assertEqual(socket.receive_json(), name)

    def tearDown(self):
        self.assertTrue(self.other.receive_nothing())

    def closed_by_waiting_for_a_message(self):
        with self.assertRaises(SocketClosed) as closed:
            self.desk.receive()
        self.assertEqual(closed.exception.code, 4401)

    def closed(self):
        self.assertEqual(self.desk.receive_close(), 4401)

    def test_logout(self):
        self.client.logout()
        self.closed_by_waiting_for_a_message()

    def test_new_password(self):
        self.ann.set_password("second")
        self.ann.save()
        self.closed_by_waiting_for_a_message()

    def test_deactivated(self):
        self.ann.is_active = False
        self.ann.save()
        self.closed_by_waiting_for_a_message()

    def test_deleted(self):
        self.ann.delete()
        self.closed_by_waiting_for_a_message()

    def test_logout_by_a_view_in_a_transaction(self):
        self.assertEqual(self.client.post("/leave/").status_code, 200)
        self.closed()

    def test_what_has_no_signal(self):
        get_user_model().objects.filter(pk=self.ann.pk).update(is_active=False)
        self.closed()

    def test_a_session_that_is_gone(self):
        Session.objects.filter(pk=self.client.session.session_key).delete()
        self.closed()

    def test_what_is_rolled_back_closes_nothing(self):
        with transaction.atomic():
            self.ann.set_password("second")
            self.ann.save()
            self.assertTrue(self.desk.receive_nothing())
            transaction.set_rollback(True)
        self.assertTrue(self.desk.receive_nothing())

    def test_callbacks_that_the_test_runs_itself_act_once(self):
        with self.captureOnCommitCallbacks(execute=True):
            self.ann.set_password("second")
            self.ann.save()
        self.closed_by_waiting_for_a_message()
        self.client.force_login(self.ann)
        # The one order may come back from the broker and close one socket more.
        self.assertTrue(any(self.stays_open() for _ in range(3)))

    def stays_open(self):
        again = self.socket(app)
        try:
            self.assertEqual(again.receive_json(), "ann")
        except SocketClosed:  # By that order.
            return False
        return again.receive_nothing()
""",
}
RUNNERS = {
    "django": ["django", "test", "--noinput"],
    "pytest": ["pytest", "-q", "-p", "no:asyncio"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_logout_closes_at_once_in_a_test_that_never_commits(runner: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", *RUNNERS[runner]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert re.search(r"Ran 9 tests|9 passed", output), output
    assert len(output) < 2000, f"it is not quiet: {output}"
