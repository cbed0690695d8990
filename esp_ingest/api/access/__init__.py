"""Who may ask: users, tokens, roles, and OpenID providers."""
