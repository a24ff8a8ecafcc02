"""The tags of `{% load django_sockets %}`, for projects with the app in INSTALLED_APPS."""
