"""What ran: the working tree as a commit of its own, and its export."""
