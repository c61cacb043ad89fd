"""Raw side-scan sonar: files of pings become pictures with places."""
