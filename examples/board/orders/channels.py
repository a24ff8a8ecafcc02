"""The channels of the orders: one for the staff, and one for each customer."""

STAFF = "orders:staff"


def channel_of_customer(customer_id):
    return f"orders:customer:{customer_id}"


def channel_of_page(user):
    """The one channel that carries everything which the user may see."""
    return STAFF if user.is_staff else channel_of_customer(user.pk)


def channels_of_order(order):
    return [STAFF, channel_of_customer(order.customer_id)]
