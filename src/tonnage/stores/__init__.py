"""Where content lives. Each store satisfies `content.storage`; none knows another."""
