"""The pages: HTML that the server renders by the templates, and what their forms do."""
