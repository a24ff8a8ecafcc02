"""From the bytes of a broker to its subscribers: in order, gaps signalled, bounded."""
