"""From a composed config to typed objects, each group at one place; nothing deeper takes a config."""
