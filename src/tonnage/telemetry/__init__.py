"""What operators watch: metrics of the services. Wraps the library below it, which never imports it."""
