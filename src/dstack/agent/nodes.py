"""How the nodes of a replica reach each other by SSH: what is put beside each job, in shell, for containers and
processes alike.

The replica's key pair is all there is: its private half is the key of every client and the host key of every
server, so each side knows the other and nothing has to be confirmed. The script is run as the job's user, in the
job's environment and folder, with the private key on its input, and may be repeated. It ends with exit code 0 once
an `sshd` listens; else the end of its output says why there is none. Beside a process it becomes that `sshd`
instead of ending.
"""

from __future__ import annotations

import shlex
from typing import Any, Dict, List

FOLDER = "/dstack/ssh"
"""In a container."""
CONTAINER = "image"
PROCESS = "host"
PID_FILE = "sshd.pid"
PROGRAMS = "bin"
"""In the folder of a process: `ssh` and its like, which know the other nodes."""


def command(ssh: Dict[str, Any], folder: str, kind: str) -> str:
    """The text for a shell. `ssh` is a task's `NodesSsh`, `kind` one of `CONTAINER` and `PROCESS`."""
    given: List[str] = [folder, kind, str(ssh["port"]), ssh["listen"], ssh["public_key"], *ssh["addresses"]]
    return f"set -- {' '.join(map(shlex.quote, given))}\n{SCRIPT}"


def waiting(commands: List[str]) -> List[str]:
    """The commands of a container, begun once the script has run. Those without a shell do not wait."""
    return ["/bin/sh", "-c", _WAIT, "sh", *commands] if commands[-2:-1] == ["-c"] else commands


def without(why: str) -> str:
    """The line in the job's log where it failed. `why` is the end of the script's output."""
    return f"ssh between the nodes of this run does not work here: {why or 'no reason was told'}\n"


def last_words(output: str) -> str:
    """The end of what the script, or the `sshd`, said."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(lines[-2:])


_WAIT = f"""tries=0
until [ -e {FOLDER}/done ] || [ $tries = 600 ]; do tries=$((tries + 1)); sleep 0.05 2>/dev/null || sleep 1; done
exec "$@"
"""
SESSION = r"""term=$TERM
. "$0.environment"
TERM=${term:-dumb}
cd "$PWD" 2>/dev/null || cd
SHELL=$(command -v bash || command -v sh)
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then exec "$SHELL" -c "$SSH_ORIGINAL_COMMAND"; fi
if "$SHELL" -l -c : >/dev/null 2>&1; then exec "$SHELL" -l; fi
exec "$SHELL"
"""
"""What an `sshd` beside a job runs for each login: the command, or a shell, in the job's own environment."""

SCRIPT = (
    r"""
folder=$1 kind=$2 port=$3 listen=$4 public=$5
shift 5
mask=$(umask)
umask 077
user=$(id -un) || exit 1
eval "home=~$user"
mkdir -p "$folder" || exit 1
if [ "$kind" = image ]; then trap ': > "$folder/done"' EXIT; fi
if [ -s "$folder/sshd.pid" ] && kill -0 "$(cat "$folder/sshd.pid")"; then exit 0; fi
cat > "$folder/key" || exit 1
echo "$public" > "$folder/authorized_keys"
echo "dstack-nodes $public" > "$folder/known_hosts"
cat > "$folder/config" <<E
Host $*
  Port $port
  IdentityFile "$folder/key"
  IdentitiesOnly yes
  HostKeyAlias dstack-nodes
  UserKnownHostsFile "$folder/known_hosts"
  StrictHostKeyChecking yes
  LogLevel ERROR
E
if [ "$kind" = image ]; then
  if ! grep -qsF "$folder/config" "$home/.ssh/config"; then
    rest=$(cat "$home/.ssh/config" 2>/dev/null)
    mkdir -p "$home/.ssh" || exit 1
    printf 'Include "%s"\n%s\n' "$folder/config" "$rest" > "$home/.ssh/config" || exit 1
  fi
else
  printf 'Match all\n  Include ~/.ssh/config\n  Include /etc/ssh/ssh_config\n' >> "$folder/config"
  mkdir -p "$folder/bin"
  for name in ssh scp sftp; do
    program=$(command -v $name) || continue
    printf '#!/bin/sh\nexec "%s" -F "%s" "$@"\n' "$program" "$folder/config" > "$folder/bin/$name"
    chmod 700 "$folder/bin/$name"
  done
fi

sshd=$(PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; command -v sshd) || {
  echo "the $kind has no sshd; install openssh-server in it if the nodes are to use ssh, as mpirun does"
  exit 1
}
PWD=$(pwd); export PWD
sh -c 'export -p' > "$folder/session.environment" || exit 1
cat > "$folder/session" <<'E'
"""
    + SESSION
    + r"""E
pam=no
case $(grep "^$user:" /etc/shadow 2>/dev/null) in "$user:!"*) [ -e /etc/pam.d/sshd ] && pam=yes ;; esac
for sftp in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec /usr/lib/misc; do
  [ -x $sftp/sftp-server ] && break
done
cat > "$folder/sshd_config" <<E
Port $port
${listen:+ListenAddress $listen}
HostKey "$folder/key"
PidFile "$folder/sshd.pid"
AuthorizedKeysFile "$folder/authorized_keys"
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM $pam
MaxStartups 1000
MaxSessions 1000
ForceCommand /bin/sh "$folder/session"
Subsystem sftp $sftp/sftp-server
E
if [ "$(id -u)" = 0 ]; then mkdir -p /run/sshd && chmod 755 /run/sshd; fi
umask "$mask"
if [ "$kind" = host ]; then exec "$sshd" -D -e -f "$folder/sshd_config"; fi
"$sshd" -f "$folder/sshd_config" -E "$folder/sshd.log" || { cat "$folder/sshd.log"; exit 1; }
tries=0
until [ -s "$folder/sshd.pid" ]; do
  tries=$((tries + 1))
  if [ $tries = 100 ] || grep -qs 'Cannot bind' "$folder/sshd.log"; then cat "$folder/sshd.log"; exit 1; fi
  sleep 0.05
done
"""
)
