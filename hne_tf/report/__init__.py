"""Runs compared on one page of HTML that needs neither a server nor a network."""
