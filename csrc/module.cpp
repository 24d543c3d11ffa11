// The Python module of a compiled library. It has no functions: importing it loads the library,
// whose initialisers register the operators with torch. Python's limited API, so that one binary
// serves every CPython from 3.10 on.
#ifndef Py_LIMITED_API
#  define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>

#define FASTGAN_STRING_(x) #x
#define FASTGAN_STRING(x) FASTGAN_STRING_(x)
#define FASTGAN_INIT_(x) PyInit_##x
#define FASTGAN_INIT(x) FASTGAN_INIT_(x)

extern "C" __attribute__((visibility("default"))) PyObject* FASTGAN_INIT(FASTGAN_MODULE_NAME)() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   FASTGAN_STRING(FASTGAN_MODULE_NAME),
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
