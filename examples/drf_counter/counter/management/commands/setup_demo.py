"""`python manage.py setup_demo` creates the tables, a user, and the token to connect with."""

from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, call_command
from rest_framework.authtoken.models import Token


class Command(BaseCommand):
    help = "Create the tables and a user, and print the user's token."

    def handle(self, *args, **options):
        call_command("migrate", verbosity=0)
        user, _ = get_user_model().objects.get_or_create(username="robot")
        token, _ = Token.objects.get_or_create(user=user)
        self.stdout.write(token.key)
