"""Who may send requests: users, tokens, roles, and OpenID providers."""
