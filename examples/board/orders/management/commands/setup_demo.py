"""`python manage.py setup_demo` creates the tables and three users."""

from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, call_command

PASSWORD = "demo-password"
PEOPLE = {"alice": True, "bob": False, "carol": False}  # Name -> whether the user is staff.


class Command(BaseCommand):
    help = "Create the tables and the users alice, bob and carol."

    def handle(self, *args, **options):
        call_command("migrate", verbosity=0)
        users = get_user_model().objects
        for name, is_staff in PEOPLE.items():
            user, _ = users.get_or_create(username=name)
            user.is_staff = user.is_superuser = is_staff
            user.set_password(PASSWORD)
            user.save()
        self.stdout.write(f"{', '.join(PEOPLE)} may log in with the password {PASSWORD}")
