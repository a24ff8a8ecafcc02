"""The project's own authentication backends."""

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import BaseBackend, ModelBackend


class Directory(BaseBackend):
    """Finds its users by itself, and ignores is_active."""

    def get_user(self, user_id):
        return get_user_model().objects.filter(pk=user_id).first()


class NobodyNamedEve(ModelBackend):
    def user_can_authenticate(self, user):
        return super().user_can_authenticate(user) and user.username != "eve"


class Broken(BaseBackend):
    def get_user(self, user_id):
        raise LookupError("the directory is on holiday")
