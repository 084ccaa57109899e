// SPDX-License-Identifier: MIT OR Apache-2.0
/* Runs a fuzz target over every file of the folders named on the command line, and over each prefix of it, as a TAP
 * program. So the corpus is an ordinary test, under every sanitizer, without a fuzzing engine. */
#include <dirent.h>
#include <stdint.h>
#include <string.h>

#include "../native/tap.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define REPLAY_BYTES 65536

static void replay(const char *folder, const char *name)
{
    static uint8_t data[REPLAY_BYTES];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    must(f);
    size_t len = fread(data, 1, sizeof data, f);
    fclose(f);
    /* An exact copy on the heap, so that a read past the end is a report. */
    for (size_t n = len < 256 ? 0 : len; n <= len; n++) {
        uint8_t *copy = malloc(n ? n : 1);
        must(copy);
        memcpy(copy, data, n);
        LLVMFuzzerTestOneInput(copy, n);
        free(copy);
    }
    ok(true, "%s (%zu bytes and its prefixes)", name, len);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        must(dir);
        for (struct dirent *e; (e = readdir(dir));)
            if (e->d_name[0] != '.') replay(argv[i], e->d_name);
        closedir(dir);
    }
    must(tap_count > 0);
    return tap_done();
}
