"""What nginx is told: the text of its files. Pure.

A request to a service passes in this order: a browser's preflight, the token, the rate limit, a replica. nginx
looks for the token among those that the app put down as known; where it is not there, a subrequest asks the app.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dstack.core.configurations.service import IPAddressPartitioningKey, RateLimit
from dstack.proxy.gateway.known_tokens import FRESH, KNOWN
from dstack.proxy.gateway.models import Entrypoint, Service
from dstack.proxy.gateway.settings import GatewaySettings

COMMON_FILE = "00-dstack.conf"
AUTH_SECONDS = 60
UNKNOWN_TOKEN = 418
"""A status that stays within nginx: it leads to the location where the app is asked."""
KEPT_CONNECTIONS = 256
"""Idle ones to the replicas of a service, for each worker of nginx."""

_COMMON = """\
# Made by the dstack gateway; changes are overwritten.
log_format dstack_stat '$time_iso8601 $host $status $request_time $dstack_replica_hit';
# A request that reached a replica, or found that there is none.
map "$upstream_status$dstack_without_replica" $dstack_replica_hit {{ "" 0; default 1; }}
# Only WebSockets change protocols.
map $http_upgrade $dstack_upgrade {{ "~*^websocket$" websocket; default ""; }}
map $dstack_upgrade $dstack_connection {{ "" ""; default upgrade; }}
# Ten seconds of the clock.
map $msec $dstack_slot {{ "~^(?<dstack_tens>[0-9]+)[0-9][.]" $dstack_tens; default none; }}
map $request_method $dstack_is_preflight {{ OPTIONS 1; default ""; }}
server_names_hash_max_size 16384;
server_names_hash_bucket_size 128;
proxy_cache_path {cache} levels=1:2 keys_zone=dstack_auth:16m max_size=256m inactive={seconds}s use_temp_path=off;
server {{
    listen {http} default_server;
    server_name _;
    access_log off;
    set $dstack_without_replica "";
    location /.well-known/acme-challenge/ {{ root {webroot}; }}
    location / {{ return 404; }}
}}
"""

_COMMON_TLS = """\
server {{
    listen {https} ssl http2 default_server;
    server_name _;
    access_log off;
    ssl_certificate {folder}/unknown-host.crt;
    ssl_certificate_key {folder}/unknown-host.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:dstack_tls:10m;
    return 404;
}}
"""

_REDIRECT = """\
server {{
    listen {http};
    server_name {domain};
    access_log off;
    location /.well-known/acme-challenge/ {{ root {webroot}; }}
    location / {{ return 301 https://$host{https_port}$request_uri; }}
}}
"""

_TLS = """\
    listen {https} ssl http2;
    ssl_certificate {live}/fullchain.pem;
    ssl_certificate_key {live}/privkey.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
"""

_PREFLIGHT = """\
        if ($dstack_is_preflight) {
            add_header Access-Control-Allow-Origin "*" always;
            add_header Access-Control-Allow-Headers "*" always;
            add_header Access-Control-Allow-Methods "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD" always;
            add_header Access-Control-Max-Age 600 always;
            return 204;
        }
"""

_CORS = """\
        proxy_hide_header Access-Control-Allow-Origin;
        proxy_hide_header Access-Control-Allow-Headers;
        proxy_hide_header Access-Control-Allow-Methods;
        proxy_hide_header Access-Control-Allow-Credentials;
        proxy_hide_header Access-Control-Expose-Headers;
        proxy_hide_header Access-Control-Max-Age;
        add_header Access-Control-Allow-Origin "*" always;
        add_header Access-Control-Allow-Headers "*" always;
        add_header Access-Control-Allow-Methods "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD" always;
"""

_HEAD = """\
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $dstack_upgrade;
    proxy_set_header Connection $dstack_connection;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-Prefix "";
    proxy_set_header Forwarded "";
    proxy_set_header Keep-Alive "";
    proxy_set_header Proxy-Connection "";
    proxy_set_header Proxy-Authorization "";
    proxy_set_header TE "";
    proxy_set_header Trailer "";
    proxy_buffering {buffering};
    proxy_request_buffering off;
    proxy_connect_timeout 10s;
    proxy_send_timeout {timeout}s;
    proxy_read_timeout {timeout}s;
"""
"""Of a server: its locations inherit what is said of requests to replicas."""

_AUTH = """\
    open_file_cache max=1000 inactive=20s;
    open_file_cache_valid 1s;
    location = /.dstack-auth {{
        internal;
        access_log off;
        error_page 500 502 504 = @silent;
        proxy_intercept_errors on;
        proxy_pass http://127.0.0.1:{app_port}/api/auth/{project};
        proxy_method GET;
        proxy_pass_request_body off;
        proxy_pass_request_headers off;
        proxy_set_header Connection "";
        proxy_set_header Authorization $http_authorization;
        proxy_buffering on;
        proxy_connect_timeout 5s;
        proxy_read_timeout 15s;
        proxy_cache dstack_auth;
        proxy_cache_key "{project}|$http_authorization";
        proxy_cache_lock on;
        proxy_cache_lock_timeout 100ms;
        proxy_ignore_headers Cache-Control Expires Vary Set-Cookie;
    }}
    location @silent {{
        access_log off;
        if (!-f "{tokens}/{known}/$dstack_slot/{project}@$http_authorization") {{ return 500; }}
        return 204;
    }}
"""

_KNOWN_OR_ASK = """\
        error_page {unknown} = {ask};
        if (!-f "{tokens}/{fresh}/$dstack_slot/{project}@$http_authorization") {{ return {unknown}; }}
"""

_ASK = """\
    location {ask} {{
        auth_request /.dstack-auth;
        try_files /.dstack-nothing {replicas};
    }}
"""


def common(settings: GatewaySettings) -> str:
    """What all sites share: formats, and the answer to hosts that nobody published."""
    values = {
        "cache": settings.auth_cache_dir,
        "seconds": AUTH_SECONDS,
        "http": settings.http_port,
        "https": settings.https_port,
        "webroot": settings.acme_webroot,
        "folder": settings.dir,
    }
    return (_COMMON + _COMMON_TLS).format(**values)


def file_of(domain: str) -> str:
    return f"443-{domain}.conf"


def service_site(settings: GatewaySettings, service: Service, sockets: Mapping[str, Path]) -> str:
    """`sockets`: those of its replicas that take traffic, by job id."""
    name = f"dstack_{service.id.replace('-', '')}"
    parts = [_upstream(name, sockets.values()) if sockets else "", *_zones(name, service.rate_limits)]
    if service.https:
        parts.append(_redirect(settings, service.domain))
    public = _listen(settings, service.domain, is_https=service.https)
    parts.append(
        _service_server(settings, service, name, public, has_replicas=bool(sockets), has_auth=service.auth)
    )
    internal = f"    listen unix:{settings.internal_socket};\n"  # for the app, which asks for tokens itself
    parts.append(_service_server(settings, service, name, internal, has_replicas=bool(sockets), has_auth=False))
    return "# Made by the dstack gateway; changes are overwritten.\n" + "".join(parts)


def entrypoint_site(settings: GatewaySettings, entrypoint: Entrypoint) -> str:
    """The OpenAI-compatible API of a project, which the app serves."""
    app = f"http://127.0.0.1:{settings.app_port}/api/models/{entrypoint.project_name}/"
    site = (
        f"server {{\n{_listen(settings, entrypoint.domain, is_https=entrypoint.https)}"
        f"    server_name {entrypoint.domain};\n    access_log off;\n    client_max_body_size 64m;\n"
        f"{_head(False, entrypoint.read_timeout)}    location / {{ proxy_pass {app}; }}\n}}\n"
    )
    head = _redirect(settings, entrypoint.domain) if entrypoint.https else ""
    return f"# Made by the dstack gateway; changes are overwritten.\n{head}{site}"


def _upstream(name: str, sockets: Iterable[Path]) -> str:
    servers = "".join(f"    server unix:{path};\n" for path in sorted(sockets))
    return f"upstream {name} {{\n{servers}    keepalive {KEPT_CONNECTIONS};\n    keepalive_requests 1000000;\n}}\n"


def _zones(name: str, limits: Iterable[RateLimit]) -> Iterable[str]:
    for number, limit in enumerate(limits):
        key = (
            "$binary_remote_addr" if isinstance(limit.key, IPAddressPartitioningKey) else _header(limit.key.header)
        )
        rate = max(1, round(limit.rps * 60))
        yield f"limit_req_zone {key} zone={name}_{number}:10m rate={rate}r/m;\n"


def _header(name: str) -> str:
    return "$http_" + name.lower().replace("-", "_")


def _redirect(settings: GatewaySettings, domain: str) -> str:
    port = "" if settings.https_port == 443 else f":{settings.https_port}"
    return _REDIRECT.format(http=settings.http_port, domain=domain, webroot=settings.acme_webroot, https_port=port)


def _listen(settings: GatewaySettings, domain: str, *, is_https: bool) -> str:
    if is_https:
        return _TLS.format(https=settings.https_port, live=settings.letsencrypt_dir / "live" / domain)
    return f"    listen {settings.http_port};\n"


def _service_server(
    settings: GatewaySettings, service: Service, name: str, listen: str, *, has_replicas: bool, has_auth: bool
) -> str:
    lines = [
        f"server {{\n{listen}    server_name {service.domain};\n",
        f"    access_log {settings.access_log} dstack_stat;\n",
        f"    client_max_body_size {service.client_max_body_size};\n",
        f'    set $dstack_without_replica "";\n    root {settings.dir}/nothing;\n',
        _head(service.proxy_buffering, service.read_timeout),
        '    proxy_set_header Authorization "";\n' if service.auth else "",
    ]
    values = {"project": service.project_name, "tokens": settings.known_tokens, "fresh": FRESH, "known": KNOWN}
    if has_auth:
        lines.append(_AUTH.format(app_port=settings.app_port, **values))
    limits = list(enumerate(service.rate_limits))
    if not any(limit.prefix == "/" for _, limit in limits):
        limits.append((-1, RateLimit(prefix="/", rps=1)))
    for number, limit in limits:
        burst = f" burst={limit.burst} nodelay" if limit.burst else ""
        limiting = f"        limit_req zone={name}_{number}{burst};\n" if number >= 0 else ""
        to_replica = _to_replica(service, name, limiting, has_replicas=has_replicas)
        preflight = _PREFLIGHT if service.cors_enabled else ""
        known = ""
        if has_auth:
            ask, replicas = _place("ask", number), _place("replicas", number)
            known = _KNOWN_OR_ASK.format(unknown=UNKNOWN_TOKEN, ask=ask, **values)
            lines.append(_ASK.format(ask=ask, replicas=replicas))
            lines.append(f"    location {replicas} {{\n{to_replica}    }}\n")
        lines.append(f"    location {_quoted(limit.prefix)} {{\n{preflight}{known}{to_replica}    }}\n")
    return "".join([*lines, "}\n"])


def _to_replica(service: Service, name: str, limiting: str, *, has_replicas: bool) -> str:
    """What a location says once the token is known. Rate limits count before subrequests are made, which is why
    the app is asked in a location of its own."""
    head = f"        limit_req_status 429;\n{limiting}"
    if not has_replicas:
        return f"{head}        set $dstack_without_replica 1;\n        return 503;\n"
    cors = _CORS if service.cors_enabled else ""
    return f"{head}        proxy_pass http://{name};\n{cors}"


def _head(has_buffering: bool, timeout: int) -> str:
    return _HEAD.format(buffering="on" if has_buffering else "off", timeout=timeout)


def _place(kind: str, number: int) -> str:
    return f"@{kind}" if number < 0 else f"@{kind}{number}"


def _quoted(prefix: str) -> str:
    """Of a location; configurations allow no white space, braces or backslashes in it."""
    return '"' + re.sub(r'(")', r"\\\1", prefix) + '"'
