#!/bin/sh
# Brings an e2fsprogs that reads tar archives (1.47.2 or newer) into a directory of its own, without root and without touching
# the machine's packages or package sources: packaging/e2fsprogs.sh <dest>
#
# The packages come from the machine's own mirror of its own release, backports included, and are verified by apt with the
# distribution's archive keyring. <dest>/mke2fs, e2fsck, debugfs and resize2fs run them. A second run finds them and does nothing.
# Exit codes: 0 it works; 1 it could not be brought (why is on standard error); 2 wrong use.
set -eu

if [ $# -ne 1 ] || [ -z "$1" ]; then
  echo "usage: $0 <dest>" >&2
  exit 2
fi
mkdir -p "$1"
dest=$(cd "$1" && pwd)
say() { echo "e2fsprogs: $*" >&2; }
fail() { say "$*"; exit 1; }

tmp=$(mktemp -d "${TMPDIR:-/tmp}/nexus-e2fs.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

# True if this mke2fs is new enough and really makes a file system from an archive: libarchive is loaded only then.
works() {
  version=$("$1" -V 2>&1 | sed -n 's/^mke2fs \([0-9.]*\).*/\1/p')
  [ -n "$version" ] || return 1
  oldest=$(printf '%s\n1.47.2\n' "$version" | sort -V | head -n 1)
  [ "$oldest" = 1.47.2 ] || return 1
  mkdir -p "$tmp/try/dir" && tar -cf "$tmp/try.tar" -C "$tmp/try" dir || return 1
  rm -f "$tmp/try.raw"
  "$1" -q -F -t ext4 -d - "$tmp/try.raw" 1M <"$tmp/try.tar" >/dev/null 2>&1
}

if [ -x "$dest/mke2fs" ] && works "$dest/mke2fs"; then
  exit 0
fi

# A script that runs one program with libraries put after those that are in the environment already: fakeroot's must stay first.
wrapper() { # name, path of the program, library path or nothing
  {
    echo '#!/bin/sh'
    # shellcheck disable=SC2016 # for the wrapper to expand
    [ -z "$3" ] || printf 'LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}"%s"\nexport LD_LIBRARY_PATH\n' "$3"
    printf 'exec "%s" "$@"\n' "$2"
  } >"$dest/.$1.$$"
  chmod 755 "$dest/.$1.$$"
  mv "$dest/.$1.$$" "$dest/$1"
}
programs='mke2fs e2fsck debugfs resize2fs'

own=$(command -v mke2fs || true)
if [ -n "$own" ] && works "$own"; then
  for program in $programs; do
    path=$(command -v "$program") && wrapper "$program" "$path" ''
  done
  exit 0
fi

for program in apt-get apt-cache dpkg-deb; do
  command -v "$program" >/dev/null || fail "this machine has no $program; install e2fsprogs 1.47.2 or newer"
done
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release | tr -d '"')
[ -n "$codename" ] || fail '/etc/os-release names no release'
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || fail "the archive keyring $keyring is missing"

# Address and suite of the release in the machine's sources, its updates and security suites included, one pair a line, in the
# order of apt: one-line form, then deb822.
mirrors() {
  eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
  for file in "${list:-/etc/apt/sources.list}" "${parts:-/etc/apt/sources.list.d}"/*.list; do
    [ -r "$file" ] || continue
    sed -n 's/#.*//; s/^[[:space:]]*deb[[:space:]]\{1,\}//p' "$file" | sed 's/^\[[^]]*\][[:space:]]*//' |
      awk -v suite="^$codename(-updates|-security)?\$" '$2 ~ suite { print $1, $2 }'
  done
  for file in "${parts:-/etc/apt/sources.list.d}"/*.sources; do
    [ -r "$file" ] || continue
    awk -v suite="^$codename(-updates|-security)?\$" '
      function stanza(  n, m, uris, suites, i, k) {
        n = split(value["uris"], uris, /[ \t]+/)
        m = split(value["suites"], suites, /[ \t]+/)
        if (tolower(value["enabled"]) !~ /^[ \t]*(no|false|without|off|disable)/ && (" " value["types"] " ") ~ / deb /)
          for (i = 1; i <= n; i++) for (k = 1; k <= m; k++)
            if (uris[i] != "" && suites[k] ~ suite) print uris[i], suites[k]
        split("", value)
      }
      /^#/ { next }
      /^[ \t]*$/ { stanza(); next }
      /^[ \t]/ { value[key] = value[key] " " $0; next }
      { key = tolower(substr($0, 1, index($0, ":") - 1)); value[key] = substr($0, index($0, ":") + 1) }
      END { stanza() }
    ' "$file"
  done
}
mirrors >"$tmp/mirrors"
uri=$(awk -v suite="$codename" '$2 == suite { print $1; exit }' "$tmp/mirrors")
[ -n "$uri" ] || fail "no package source of this machine has the suite $codename"

mkdir -p "$tmp/lists/partial" "$tmp/archives/partial" "$tmp/debs" "$tmp/root"
echo "$uri $codename-backports" >>"$tmp/mirrors"
sort -u "$tmp/mirrors" | while read -r address suite; do
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$address" "$suite"
done >"$tmp/sources.list"
# The machine's own settings (proxies, certificates) stay in force; only lists, sources and caches are private.
set -- -q -o "Dir::Etc::SourceList=$tmp/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
  -o Dir::Etc::PreferencesParts=/dev/null -o "Dir::State::Lists=$tmp/lists" -o "Dir::Cache=$tmp/archives" \
  -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Acquire::Retries=2 -o APT::Get::AllowUnauthenticated=false \
  -o Acquire::Languages=none
apt-get "$@" update >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; fail "the package lists of $codename-backports cannot be had"; }

# What apt would install to get them; what this machine has already is left out.
archive=libarchive13
if apt-cache "$@" policy libarchive13t64 | grep -q "Candidate: [0-9]"; then archive=libarchive13t64; fi
apt-get "$@" -s -t "$codename-backports" --no-install-recommends install e2fsprogs "$archive" >"$tmp/plan" 2>"$tmp/log" ||
  { cat "$tmp/log" >&2; fail 'apt finds no way to install e2fsprogs from backports'; }
wanted=$(sed -n 's/^Inst \([^ ]*\) \(\[[^]]*\] \)\{0,1\}(\([^ ]*\).*/\1=\3/p' "$tmp/plan")
# shellcheck disable=SC2086 # a list of words
(cd "$tmp/debs" && apt-get "$@" -t "$codename-backports" download $wanted) >"$tmp/log" 2>&1 ||
  { cat "$tmp/log" >&2; fail 'the packages cannot be downloaded'; }

for deb in "$tmp"/debs/*.deb; do
  case ${deb##*/} in libc6_* | libc-bin_*) continue ;; esac # its loader is the machine's own
  dpkg-deb -x "$deb" "$tmp/root"
done
libraries=''
for dir in lib usr/lib; do
  for path in "$tmp/root/$dir"/*-linux-gnu*; do
    [ -d "$path" ] || continue
    libraries="$libraries${libraries:+:}$dest/root${path#"$tmp/root"}"
  done
done
[ -x "$tmp/root/sbin/mke2fs" ] || [ -x "$tmp/root/usr/sbin/mke2fs" ] || fail 'the package has no mke2fs'

# In one move, so that a run that is cut off leaves the old state or the new one.
rm -rf "$dest/.root.new"
mkdir "$dest/.root.new"
cp -a "$tmp/root/." "$dest/.root.new/"
rm -rf "$dest/root"
mv "$dest/.root.new" "$dest/root"
for program in $programs; do
  for dir in sbin usr/sbin; do
    [ ! -x "$dest/root/$dir/$program" ] || wrapper "$program" "$dest/root/$dir/$program" "$libraries"
  done
done
works "$dest/mke2fs" || fail 'the downloaded mke2fs does not read archives'
