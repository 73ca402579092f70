"""The pages: HTML that the server renders from templates, and the actions of their forms."""
