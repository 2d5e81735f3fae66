// A compiler whose machine code is ELF's magic and the source, for tests of src/kernels/cuda/driver.
#include <stdlib.h>
#include <string.h>

typedef struct { char *text; } Program;

static int compiled;
int fake_compiled(void) { return compiled; }

#ifdef MISFIT
int nvrtcVersion(int *major, int *minor) { *major = 13, *minor = 0; return 0; }
#else
int nvrtcVersion(int *major, int *minor) { *major = 12, *minor = 8; return 0; }
#endif
int nvrtcCreateProgram(Program **program, const char *source, const char *name, int count, const char *const *headers,
                       const char *const *names) {
    (void)name, (void)headers, (void)names;
    *program = malloc(sizeof(Program));
    (*program)->text = malloc(strlen(source) + 5);
    strcat(strcpy((*program)->text, "\x7f" "ELF"), source);
    return count > 0 ? 0 : 1;
}
int nvrtcDestroyProgram(Program **program) { free((*program)->text), free(*program), *program = NULL; return 0; }
// What it was last asked for.
static char machine[16], arch[16];
const char *fake_machine(void) { return machine; }
const char *fake_arch(void) { return arch; }
int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    (void)program;
    compiled++;
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "-arch=", 6)) strncpy(machine, options[i] + 6, 15);
        if (!strncmp(options[i], "-DARCH=", 7)) strncpy(arch, options[i] + 7, 15);
    }
    return 0;
}
int nvrtcGetProgramLogSize(Program *program, size_t *bytes) { (void)program; *bytes = 1; return 0; }
int nvrtcGetProgramLog(Program *program, char *log) { (void)program; *log = 0; return 0; }
int nvrtcGetCUBINSize(Program *program, size_t *bytes) { *bytes = strlen(program->text) + 1; return 0; }
int nvrtcGetCUBIN(Program *program, char *cubin) { strcpy(cubin, program->text); return 0; }
