"""What the three services share on the wire: server scaffold, identity, errors, names, pages, uploads, channels."""
