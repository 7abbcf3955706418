#!/usr/bin/env bash
# The gate's messages by hand, with openssl and curl: for debugging, not for money.
#
#   gate.sh sign   SECRETS request|answer FILE           the three webhook headers for a body
#   gate.sh verify SECRETS request|answer FILE HEADERS   whether a recorded body and its headers fit
#   gate.sh answer SECRETS FILE yes|no [REASON]          an answer to a recorded question, signed: headers, empty line, body
#   gate.sh ask    SECRETS FILE URL CA [CURL OPTIONS]    sends a question as a signer does, and verifies what comes back
#
# SECRETS is the JSON file of `keymoot gate secret --generate`; its secrets never become arguments of a command.
# FILE is a body, byte for byte; HEADERS a file with a line for each header. Needs bash, openssl 1.1, curl, sed, od.
set -euo pipefail
export LC_ALL=C

fail() { printf 'gate.sh: %s\n' "$*" >&2; exit 1; }

# The first string member $1 of the JSON on standard input, as Keymoot writes it.
member() { tr -d '\n' | grep -o "\"$1\" *: *\"[^\"]*\"" | sed -n '1 { s/.*: *"//; s/"$//; p; }'; }

# The base64 of HMAC-SHA256 of standard input, with secret $2_hmac of file $1. RFC 2104, as openssl would take the
# key as an argument, where every user of this machine can read it.
hmac() {
    local secret byte inner="" outer="" count=0
    secret=$(member "$2_hmac" <"$1")
    [ "${secret#whsec_}" != "$secret" ] || fail "$1 has no $2_hmac"
    for byte in $(printf %s "${secret#whsec_}" | openssl base64 -d -A | od -An -v -tx1); do
        printf -v inner '%s\\x%02x' "$inner" $((0x$byte ^ 0x36))
        printf -v outer '%s\\x%02x' "$outer" $((0x$byte ^ 0x5c))
        count=$((count + 1))
    done
    [ "$count" -ge 24 ] && [ "$count" -le 64 ] || fail "the secret in $1 has $count bytes, not 24 to 64"
    for (( ; count < 64; count++)); do inner+='\x36' outer+='\x5c'; done
    { printf %b "$inner"; cat; } | openssl dgst -sha256 -binary \
        | { printf %b "$outer"; cat; } | openssl dgst -sha256 -binary | openssl base64 -A
}

# Standard Webhooks: id.timestamp.body
signature() { { printf '%s.%s.' "$3" "$4"; cat "$5"; } | hmac "$1" "$2"; }

sign() { # SECRETS DIRECTION FILE [ID]
    local id=${4:-} now mac
    [ -n "$id" ] || id=$(member uid <"$3")
    now=$(date +%s)
    mac=$(signature "$1" "$2" "$id" "$now" "$3")
    printf 'webhook-id: %s\nwebhook-timestamp: %s\nwebhook-signature: v1,%s\n' "$id" "$now" "$mac"
}

header() { tr -d '\r' <"$2" | sed -n "s/^$1: *//Ip" | tail -n 1; }

verify() { # SECRETS DIRECTION FILE HEADERS
    local id at given expected one off
    id=$(header webhook-id "$4") at=$(header webhook-timestamp "$4") given=$(header webhook-signature "$4")
    [ -n "$id" ] && [ -n "$at" ] && [ -n "$given" ] || fail "a webhook header is missing"
    [[ $at =~ ^[1-9][0-9]{0,11}$ ]] || fail "webhook-timestamp $at is no Unix time"
    expected="v1,$(signature "$1" "$2" "$id" "$at" "$3")"
    for one in $given; do
        [ "$one" = "$expected" ] || continue
        off=$(($(date +%s) - at))
        [ ${off#-} -le 300 ] || fail "the signature fits, but it is $off s old: more than 300 are refused"
        echo "the signature fits, and is $off s old"
        return 0
    done
    fail "no signature fits: is it the secret of this direction, and the body byte for byte?"
}

answer() { # SECRETS FILE yes|no [REASON]
    local body allowed dry name echoed=""
    case $3 in yes) allowed=true ;; no) allowed=false ;; *) fail "say yes or no" ;; esac
    [[ ${4:-} != *[\"\\]* ]] || fail "a reason without quotes and backslashes, please"
    dry=$(grep -o '"dryRun" *: *[a-z]*' "$2" | sed -n '1s/.*: *//p')
    body=$(mktemp)
    trap "rm -f '$body'" EXIT
    for name in uid request_digest signer_id kind; do
        echoed+=",\"$name\":\"$(member "$name" <"$2")\"" || fail "$2 has no $name"
    done
    printf '{"type":"validation.answer"%s,"dryRun":%s,' "$echoed" "$dry" >"$body"
    printf '"allowed":%s,"status":{"reason":"%s"},"expiresAt":"%s"}' \
        "$allowed" "${4:-}" "$(date -u -d '+1 minute' +%Y-%m-%dT%H:%M:%SZ)" >>"$body"
    sign "$1" answer "$body"
    printf '\n'
    cat "$body"
}

ask() { # SECRETS FILE URL CA [CURL OPTIONS]
    local work
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    sign "$1" request "$2" >"$work/headers"
    curl -sS --cacert "$4" --max-time 10 -H @"$work/headers" -H 'content-type: application/json' \
        --data-binary @"$2" -D "$work/answered" -o "$work/body" "${@:5}" "$3"
    cat "$work/answered" "$work/body"
    printf '\n'
    verify "$1" answer "$work/body" "$work/answered"
}

case ${1:-} in
    sign) [ $# -eq 4 ] || fail "sign SECRETS request|answer FILE" ;;
    verify) [ $# -eq 5 ] || fail "verify SECRETS request|answer FILE HEADERS" ;;
    answer) [ $# -ge 4 ] || fail "answer SECRETS FILE yes|no [REASON]" ;;
    ask) [ $# -ge 5 ] || fail "ask SECRETS FILE URL CA [CURL OPTIONS]" ;;
    *) fail "sign, verify, answer or ask: see the first lines of this file" ;;
esac
"$@"
