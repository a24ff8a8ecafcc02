"""Django finds the client among the static files, and hashes its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import django
from django.conf import settings
from django.core.management import call_command
from django.template import Context, Template

manifest = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
settings.configure(
    INSTALLED_APPS=["django.contrib.staticfiles", "django_sockets"],
    STATIC_ROOT=sys.argv[1],
    STATIC_URL="/static/",
    STORAGES={"staticfiles": {"BACKEND": manifest}},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)
django.setup()
call_command("collectstatic", interactive=False, verbosity=0)
print(Template("{% load django_sockets %}{% django_sockets_client %}").render(Context({})))
"""


def test_the_import_map_names_the_hashed_files_that_collectstatic_has_written(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    addresses = re.findall(r'"/static/(django_sockets/(\w+)\.[0-9a-f]{12}\.js)"', ended.stdout)
    assert {name for _, name in addresses} == {"client", "events", "react"}
    for address, name in addresses:
        shipped = Path(__file__).parents[2] / f"django_sockets/static/django_sockets/{name}.js"
        assert (tmp_path / address).read_bytes() == shipped.read_bytes()
